"""Mask R-CNN with FPN on COCO, from a greenjax Twins-SVT-L (mmdetection 3.x, mmpretrain 1.x).

    python -m greenjax.convert to-torch --workdir runs/twins_l --layout mmdet --prefix backbone. --output twins_l.pth
    mim train mmdet mask-rcnn_twins-l_fpn_coco.py --launcher pytorch --gpus 8

mmdetection has no Twins; the backbone is mmpretrain's, which has to be installed. Images, schedule and augmentation are
those of mask-rcnn_swin-b_fpn_coco.py, which says where its numbers are from. No training has been run with this file.

mmpretrain's local attention masks padding where both sides of a map are padded to windows, but not where one is.
--cfg-options model.data_preprocessor.pad_size_divisor=224 avoids padding windows, for larger images.
"""

_base_ = "mask-rcnn_swin-b_fpn_coco.py"

custom_imports = dict(imports=["mmpretrain.models"], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type="mmpretrain.SVT",
        arch="large",
        in_channels=3,
        out_indices=(0, 1, 2, 3),
        qkv_bias=True,  # the library's default drops these biases
        norm_cfg=dict(type="LN", eps=1e-6),
        norm_after_stage=[False, False, False, True],  # Twins' final norm
        drop_path_rate=0.2,  # as in the other file
        init_cfg=dict(type="Pretrained", checkpoint="twins_l.pth", prefix="backbone."),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
