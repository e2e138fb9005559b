"""The transformer block that several families share, and initialisations."""
from typing import Any, Optional

from timm.layers import DropPath, LayerScale, Mlp, trunc_normal_
from torch import Tensor, nn

from .locality import LocalityAttention


class Block(nn.Module):
    """The usual pre-norm block: attention, then the MLP, both residual; `init_values`: of LayerScale, if any."""

    def __init__(self, dim: int, attn: nn.Module, mlp_hidden: int, proj_drop: float = 0., drop_path: float = 0.,
                 init_values: Optional[float] = None, device: Any = None, dtype: Any = None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = attn
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0. else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, mlp_hidden, drop=proj_drop, **dd)
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0. else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class LocalityBlock(Block):
    """Block with plain attention, or with `lsa` locality attention."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, lsa: bool, attn_drop: float = 0.,
                 proj_drop: float = 0., drop_path: float = 0., qkv_bias: bool = False,
                 device: Any = None, dtype: Any = None) -> None:
        dd = {'device': device, 'dtype': dtype}
        attn = LocalityAttention(dim, num_heads, dim // num_heads, lsa, attn_drop, proj_drop, qkv_bias=qkv_bias, **dd)
        super().__init__(dim, attn, int(dim * mlp_ratio), proj_drop, drop_path, **dd)


def init_xavier(module: nn.Module) -> None:
    """Initialise one module as the authors do: Linear weights xavier-normal, all else as PyTorch does."""
    if isinstance(module, nn.Linear):
        module.reset_parameters()  # for the bias
        nn.init.xavier_normal_(module.weight)
    elif isinstance(module, (nn.LayerNorm, nn.Conv2d)):
        module.reset_parameters()
    elif isinstance(module, LocalityAttention):
        module.reset_temperature()


def init_trunc_normal(module: nn.Module) -> None:
    """Initialise a Linear with truncated normal weights of 0.02 and no bias, a LayerNorm as PyTorch does."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()
    elif isinstance(module, LocalityAttention):
        module.reset_temperature()
