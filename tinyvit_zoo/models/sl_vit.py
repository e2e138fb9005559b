"""ViT for small data sets, with shifted patch tokenization and locality self-attention, or plain.

Paper: Vision Transformer for Small-Size Datasets, https://arxiv.org/abs/2112.13492 (Lee, Lee and Song, 2021)
Authors' code: https://github.com/aanna0701/SPT_LSA_ViT (no licence, no weights published; written from the paper)

`plain_vit` is the paper's baseline: a ViT of nine narrow blocks with a class token. `sl_vit` shifts the image before it
cuts the patches (`spt`, layers/shifted.py) and sharpens the attention (`lsa`, layers/attention.py). `_64` is for 64
pixels: patches of 8.

Where we differ from the authors: the mask follows the image size; temperatures are not decayed.
"""
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..layers import LocalityBlock, PatchTokenization, ShiftedPatchTokenization, init_xavier
from ..weights import unwrap
from ._build import Filter, adapt_linear_stem, build_model, register_family, renamed
from ._tokens import TokenTransformer, fit_positions


class LocalViT(TokenTransformer):
    """ViT with a class token; drop path is the same in every block."""
    init_module = staticmethod(init_xavier)
    init_table = staticmethod(nn.init.normal_)
    tables = ('cls_token', 'pos_embed')

    def __init__(self, img_size: int | tuple[int, int] = 32, in_chans: int = 3, num_classes: int = 10,
                 global_pool: str = 'token', patch_size: int = 4, embed_dim: int = 192, depth: int = 9,
                 num_heads: int = 12, mlp_ratio: float = 2., spt: bool = True, lsa: bool = True, drop_rate: float = 0.,
                 pos_drop_rate: float = 0., proj_drop_rate: float = 0., attn_drop_rate: float = 0.,
                 drop_path_rate: float = 0.1, device: Any = None, dtype: Any = None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__(img_size, in_chans, embed_dim, num_prefix_tokens=1)
        tokenizer = (ShiftedPatchTokenization if spt else PatchTokenization)(in_chans, embed_dim, patch_size, **dd)
        self._init_tokens(tokenizer, embed_dim, pos_drop_rate, **dd)
        self.blocks = nn.Sequential(*[
            LocalityBlock(embed_dim, num_heads, mlp_ratio, lsa, attn_drop_rate, proj_drop_rate, drop_path_rate, **dd)
            for _ in range(depth)])
        self._init_end(num_classes, global_pool, drop_rate, **dd)


# of a ViT; PiT and CaiT share all but the first, once their blocks' names are of this form
AUTHORS_NAMES: tuple[tuple[str, Any], ...] = (
    (r'^transformer\.layers\.(\d+)\.', r'blocks.\1.'),
    (r'^pos_embedding$', 'pos_embed'),
    (r'^to_patch_embedding\.(0\.)?merging\.1\.', 'tokenizer.norm.'),
    (r'^to_patch_embedding\.((0\.)?merging\.2|\d+)\.', 'tokenizer.proj.'),
    (r'^mlp_head\.0\.', 'norm.'),
    (r'^mlp_head\.1\.', 'head.'),
    (r'(blocks\.\d+)\.0\.norm\.', r'\1.norm1.'),
    (r'(blocks\.\d+)\.0\.fn\.scale$', r'\1.attn.temperature'),
    (r'(blocks\.\d+)\.0\.fn\.to_qkv\.', r'\1.attn.qkv.'),
    (r'(blocks\.\d+)\.0\.fn\.to_out\.0\.', r'\1.attn.proj.'),
    (r'(blocks\.\d+)\.1\.norm\.', r'\1.norm2.'),
    (r'(blocks\.\d+)\.1\.fn\.net\.0\.', r'\1.mlp.fc1.'),
    (r'(blocks\.\d+)\.1\.fn\.net\.3\.', r'\1.mlp.fc2.'),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: LocalViT,
                         source_size: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """Rename the authors' tensors, or ours, bare or wrapped, and fit them to the size and channels of `model`."""
    tensors = renamed(unwrap(state_dict), AUTHORS_NAMES)
    return adapt_linear_stem(fit_positions(tensors, model, source_size), model)


def register_spt_lsa(module: str, model_cls: type[TokenTransformer], filter_fn: Filter, large: dict[str, Any],
                     first_conv: str = 'tokenizer.proj') -> None:
    """Register `plain_KIND` and `sl_KIND` of a module `sl_KIND`, and with the arguments `large` both for 64 pixels."""
    kind, plain = module.rpartition('_')[2], dict(spt=False, lsa=False)
    register_family(module, partial(build_model, model_cls, filter_fn=filter_fn), {
        f'plain_{kind}': ('c10', 32, plain),
        f'plain_{kind}_64': ('timnet', 64, {**large, **plain}),
        f'sl_{kind}': ('c10', 32, {}),
        f'sl_{kind}_64': ('timnet', 64, large),
    }, first_conv=first_conv, paper_ids='arXiv:2112.13492', paper_name='Vision Transformer for Small-Size Datasets',
        origin_url='https://github.com/aanna0701/SPT_LSA_ViT')


register_spt_lsa(__name__, LocalViT, checkpoint_filter_fn, large={'patch_size': 8})
