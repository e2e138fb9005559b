"""The transformer block that several families share."""
from typing import Any

from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from .locality import LocalityAttention


class LocalityBlock(nn.Module):
    """The usual pre-norm block: attention, plain or with `lsa`, then the MLP, each a residual branch."""

    def __init__(
            self,
            dim: int,
            num_heads: int,
            mlp_ratio: float,
            lsa: bool,
            attn_drop: float = 0.,
            proj_drop: float = 0.,
            drop_path: float = 0.,
            qkv_bias: bool = False,
            device: Any = None,
            dtype: Any = None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = LocalityAttention(
            dim, num_heads, dim // num_heads, lsa, attn_drop, proj_drop, qkv_bias=qkv_bias, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0. else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0. else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return x


def init_xavier(module: nn.Module) -> None:
    """Initialise one module as the authors do: Linear weights xavier-normal, all else as PyTorch does."""
    if isinstance(module, nn.Linear):
        module.reset_parameters()  # for the bias
        nn.init.xavier_normal_(module.weight)
    elif isinstance(module, (nn.LayerNorm, nn.Conv2d)):
        module.reset_parameters()
    elif isinstance(module, LocalityAttention):
        module.reset_temperature()
