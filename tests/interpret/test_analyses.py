"""Which analyses each model can have."""
import timm

from tinyvit_zoo.interpret.analyses import unsupported
from tinyvit_zoo.models import list_models


def test_every_model_says_what_it_can_have() -> None:
    found = {name: {kind for kind, why in unsupported(timm.create_model(name, device='meta')).items() if not why}
             for name in list_models() if not name.startswith('fast_cnn')}    # a convolutional network
    always = {'attention', 'maps', 'similarity'}
    for name, kinds in found.items():
        assert always <= kinds, name
        assert ('rollout' in kinds) == (name.split('_')[1] not in ('cait', 'pit', 'swin')), name
        assert ('pooling' in kinds) == name.startswith(('cct', 'cvt')), name
        assert ('temperatures' in kinds) == name.startswith('sl_'), name
        assert ('positions' in kinds) == (not name.startswith('ssl_swin')), name
    convnet = unsupported(timm.create_model('resnet18', device='meta'))
    assert not convnet['similarity'] and all(convnet[kind] for kind in convnet.keys() - {'similarity'})
