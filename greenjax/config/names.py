"""Keys that a misspelt or foreign name may mean."""

import difflib
from collections.abc import Collection

# The names of each key in other projects: timm, MMPretrain, Detectron2, MAE, transformers.
SYNONYMS = {
    "data.no_data": "nodata ignore_value fill_value",
    "data.channels": "bands band_indices",
    "data.batch_size": "batch bs ims_per_batch per_device_train_batch_size samples_per_gpu",
    "data.erasing": "reprob random_erasing",
    "data.eval_crop": "crop_pct",
    "data.eval_split": "test_path test_split val val_dir val_path val_split",
    "data.flip": "hflip",
    "data.mean": "norm_mean",
    "data.name": "dataset",
    "data.path": "data_dir data_path data_root root train_dir train_path",
    "data.randaugment": "aa auto_augment rand_augment",
    "data.source": "dataset",
    "data.scale": "rescale_factor max_pixel_value divisor",
    "data.std": "norm_std",
    "data.workers": "num_workers workers_per_gpu dataloader_num_workers",
    "ema": "ema_decay model_ema model_ema_decay",
    "epochs": "epoch max_epochs num_epochs num_train_epochs",
    "image_size": "img_size input_size resolution size",
    "init": "checkpoint finetune load_from pretrained resume resume_from weights",
    "log.checkpoint_every": "save_every save_freq save_interval save_steps",
    "log.eval_every": "eval_freq eval_interval eval_steps val_interval",
    "log.every": "log_freq log_interval log_steps logging_steps print_freq",
    "mesh.data": "devices gpus num_gpus world_size",
    "model.drop_path": "drop_path_rate dropout",
    "model.dtype": "amp bf16 fp16 precision",
    "model.embed_dim": "dim hidden_size",
    "model.in_channels": "in_chans",
    "model.name": "arch backbone",
    "model.num_classes": "classes nb_classes num_labels",
    "model.patch": "patch_size",
    "model.remat": "checkpointing grad_checkpointing gradient_checkpointing use_checkpoint with_cp",
    "optim.accumulation": "accum_iter accumulate_grad_batches grad_accum grad_accum_steps gradient_accumulation_steps",
    "optim.b1": "adam_beta1 beta1 betas",
    "optim.b2": "adam_beta2 beta2 betas",
    "optim.base_lr": "blr learning_rate lr",
    "optim.clip": "clip_grad clip_norm grad_clip gradient_clip max_grad_norm max_norm",
    "optim.label_smoothing": "smoothing",
    "optim.name": "opt optimizer",
    "optim.warmup_epochs": "warmup",
    "optim.warmup_steps": "warmup warmup_iters",
    "optim.weight_decay": "decay wd",
    "steps": "iterations iters max_iter max_iters max_steps num_iterations num_steps total_steps",
}

WORKDIR = ["exp_dir", "output", "output_dir", "save_dir", "work_dir", "workdir"]  # --workdir, a flag of its own


def nearest(name: str, keys: Collection[str]) -> list[str]:
    """At most three of `keys` that `name` may mean: by synonyms, without its section, by spelling, by common words."""
    name = name.lower().replace("-", "_")
    last = name.rpartition(".")[2]
    by_last: dict[str, list[str]] = {}
    for key in keys:
        by_last.setdefault(key.rpartition(".")[2], []).append(key)
    found = [key for key, names in SYNONYMS.items() if last in names.split()] + by_last.get(last, [])
    if not found:
        found = difflib.get_close_matches(name, keys, 3, 0.75)
        found += [key for close in difflib.get_close_matches(last, by_last, 2, 0.75) for key in by_last[close]]
    if not found:
        words = set(last.split("_"))
        shared = {key: len(words & set(key.rpartition(".")[2].split("_"))) for key in keys}
        found = sorted(filter(shared.get, keys), key=lambda key: -shared[key])
    return list(dict.fromkeys(found))[:3]
