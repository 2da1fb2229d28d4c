"""torchvision's Mask R-CNN on a Swin Transformer, for a config of greenjax. docs/detection.md has the same in short."""

from collections import OrderedDict

from ml_collections import ConfigDict
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool


class Backbone(nn.Module):
    """The encoder's stages, normed, and joined in a pyramid."""

    def __init__(self, config: ConfigDict):
        super().__init__()
        model, self.out_channels = config.model, config.detect.fpn_dim
        window, depths, heads = [model.window] * 2, list(model.depths), list(model.num_heads)
        self.body = SwinTransformer([model.patch] * 2, model.embed_dim, depths, heads, window, model.mlp_ratio)
        for block in self.body.modules():
            if hasattr(block, "stochastic_depth"):
                block.stochastic_depth.p = model.drop_path
        self.body.norm, self.body.head = nn.Identity(), nn.Identity()
        dims = [model.embed_dim * 2**i for i in range(len(depths))]
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        self.fpn = FeaturePyramidNetwork(dims, self.out_channels, LastLevelMaxPool())

    def forward(self, x):
        maps = OrderedDict()
        for i, layer in enumerate(self.body.features):
            x = layer(x)
            if i % 2:
                maps[str(i // 2)] = self.norms[i // 2](x).permute(0, 3, 1, 2)
        return self.fpn(maps)


def mask_rcnn(config: ConfigDict) -> MaskRCNN:
    """With the settings of `config.detect`. Images are colour-normalised, and of the size `config.image_size`."""
    detect, classes = config.detect, config.model.num_classes + 1
    dim, levels = detect.fpn_dim, [str(i) for i in range(len(config.model.depths))]
    (pre_train, pre_test), (post_train, post_test) = detect.pre_nms, detect.post_nms
    parts, ratios = {}, ((0.5, 1.0, 2.0),) * len(detect.anchor_sizes)
    if dim != 256:  # the widths of the paper are torchvision's defaults
        predictor = nn.Module()
        predictor.cls_score, predictor.bbox_pred = nn.Linear(4 * dim, classes), nn.Linear(4 * dim, 4 * classes)
        predictor.forward = lambda x: (predictor.cls_score(x), predictor.bbox_pred(x))
        parts = dict(
            box_head=TwoMLPHead(dim * 7**2, 4 * dim),
            box_predictor=predictor,
            mask_head=MaskRCNNHeads(dim, [dim] * 4, 1),
            mask_predictor=MaskRCNNPredictor(dim, dim, classes),
        )
    return MaskRCNN(
        Backbone(config),
        None if parts else classes,
        rpn_anchor_generator=AnchorGenerator(tuple((size,) for size in detect.anchor_sizes), ratios),
        box_roi_pool=MultiScaleRoIAlign(levels, 7, 2),
        mask_roi_pool=MultiScaleRoIAlign(levels, 14, 2),
        rpn_pre_nms_top_n_train=pre_train,
        rpn_pre_nms_top_n_test=pre_test,
        rpn_post_nms_top_n_train=post_train,
        rpn_post_nms_top_n_test=post_test,
        rpn_nms_thresh=detect.rpn_nms_threshold,
        rpn_batch_size_per_image=detect.rpn_samples,
        box_score_thresh=detect.score_threshold,
        box_nms_thresh=detect.nms_threshold,
        box_detections_per_img=detect.max_detections,
        box_batch_size_per_image=detect.box_samples,
        min_size=min(config.image_size),
        max_size=max(config.image_size),
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        size_divisible=1,
        **parts,
    )
