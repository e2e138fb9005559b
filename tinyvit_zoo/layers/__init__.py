from .attention import SelfAttention, attend
from .pooling import SequencePool
from .position import is_sine_table, resize_table, sine_table
from .slicing import slice_length

__all__ = [
    'SelfAttention', 'SequencePool', 'attend', 'is_sine_table', 'resize_table', 'sine_table', 'slice_length',
]
