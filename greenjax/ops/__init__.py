"""Operations on visible tokens: group attention and sparse convolution, as functions of arrays.

Read in this order: primitives, group_attention (fused_attention has it as one kernel), sparse_conv and its backends,
sparse_native, spconv_bridge and spconv_torch.
"""
