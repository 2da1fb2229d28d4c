"""Mask R-CNN with FPN on COCO, from a greenjax Swin-B (mmdetection 3.x).

    python -m greenjax.convert to-torch --workdir runs/swin_b --layout mmdet --prefix backbone. --output swin_b.pth
    mim train mmdet mask-rcnn_swin-b_fpn_coco.py --launcher pytorch --gpus 8

mmdetection looks for images and annotations in data/coco. Another file of weights: --cfg-options
model.backbone.init_cfg.checkpoint=FILE. Automatic mixed precision: --amp.

The numbers are those of the paper (arXiv 2205.13515, section 4.1) where it prints them: batch 16, AdamW, rate 1e-4,
weight decay 0.05, 36 epochs ("3x"), rate / 10 after 27 and 33. All numbers are also those of mmdetection 3.3.0's own
Mask R-CNN with Swin-T and Swin-S (its mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py), which are the Swin paper's (arXiv
2103.14030): scales of 480 to 800 with crops, 8 GPUs x 2 images. mmdetection has no Mask R-CNN with Swin-B. No training
has been run with this file.
"""

_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwinTransformer",
        embed_dims=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        window_size=7,
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.2,  # mmdetection's for Swin-T and Swin-S
        convert_weights=False,  # the file has mmdetection's own names
        init_cfg=dict(type="Pretrained", checkpoint="swin_b.pth"),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)

scales = [(side, 1333) for side in range(480, 801, 32)]
resize = dict(type="RandomChoiceResize", scales=scales, keep_ratio=True)
crop = [
    dict(type="RandomChoiceResize", scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True),
    dict(type="RandomCrop", crop_type="absolute_range", crop_size=(384, 600), allow_negative_crop=True),
]
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomChoice", transforms=[[resize], [*crop, resize]]),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))  # a GPU

train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),  # warm-up, in updates
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={"relative_position_bias_table": dict(decay_mult=0.0), "norm": dict(decay_mult=0.0)}
    ),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)  # --auto-scale-lr where it is not 8 GPUs x 2 images
