"""What is known of a data set beforehand: normalisation and classes.

The figures are those of the authors' recipes; where no recipe of theirs has the set, those in general use (STL-10,
MNIST, Fashion-MNIST) or measured on the training images at 32 px (digits). A grey set repeats its one figure.
"""
from __future__ import annotations

from dataclasses import dataclass

_CIFAR10 = (
    'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck',
)
_CIFAR100 = (
    'apple', 'aquarium_fish', 'baby', 'bear', 'beaver', 'bed', 'bee', 'beetle', 'bicycle', 'bottle', 'bowl',
    'boy', 'bridge', 'bus', 'butterfly', 'camel', 'can', 'castle', 'caterpillar', 'cattle', 'chair', 'chimpanzee',
    'clock', 'cloud', 'cockroach', 'couch', 'crab', 'crocodile', 'cup', 'dinosaur', 'dolphin', 'elephant',
    'flatfish', 'forest', 'fox', 'girl', 'hamster', 'house', 'kangaroo', 'keyboard', 'lamp', 'lawn_mower',
    'leopard', 'lion', 'lizard', 'lobster', 'man', 'maple_tree', 'motorcycle', 'mountain', 'mouse', 'mushroom',
    'oak_tree', 'orange', 'orchid', 'otter', 'palm_tree', 'pear', 'pickup_truck', 'pine_tree', 'plain', 'plate',
    'poppy', 'porcupine', 'possum', 'rabbit', 'raccoon', 'ray', 'road', 'rocket', 'rose', 'sea', 'seal', 'shark',
    'shrew', 'skunk', 'skyscraper', 'snail', 'snake', 'spider', 'squirrel', 'streetcar', 'sunflower',
    'sweet_pepper', 'table', 'tank', 'telephone', 'television', 'tiger', 'tractor', 'train', 'trout', 'tulip',
    'turtle', 'wardrobe', 'whale', 'willow_tree', 'wolf', 'woman', 'worm',
)
_FLOWERS102 = (
    'pink primrose', 'hard-leaved pocket orchid', 'canterbury bells', 'sweet pea', 'english marigold',
    'tiger lily', 'moon orchid', 'bird of paradise', 'monkshood', 'globe thistle', 'snapdragon', "colt's foot",
    'king protea', 'spear thistle', 'yellow iris', 'globe-flower', 'purple coneflower', 'peruvian lily',
    'balloon flower', 'giant white arum lily', 'fire lily', 'pincushion flower', 'fritillary', 'red ginger',
    'grape hyacinth', 'corn poppy', 'prince of wales feathers', 'stemless gentian', 'artichoke', 'sweet william',
    'carnation', 'garden phlox', 'love in the mist', 'mexican aster', 'alpine sea holly', 'ruby-lipped cattleya',
    'cape flower', 'great masterwort', 'siam tulip', 'lenten rose', 'barbeton daisy', 'daffodil', 'sword lily',
    'poinsettia', 'bolero deep blue', 'wallflower', 'marigold', 'buttercup', 'oxeye daisy', 'common dandelion',
    'petunia', 'wild pansy', 'primula', 'sunflower', 'pelargonium', 'bishop of llandaff', 'gaura', 'geranium',
    'orange dahlia', 'pink-yellow dahlia?', 'cautleya spicata', 'japanese anemone', 'black-eyed susan',
    'silverbush', 'californian poppy', 'osteospermum', 'spring crocus', 'bearded iris', 'windflower',
    'tree poppy', 'gazania', 'azalea', 'water lily', 'rose', 'thorn apple', 'morning glory', 'passion flower',
    'lotus', 'toad lily', 'anthurium', 'frangipani', 'clematis', 'hibiscus', 'columbine', 'desert-rose',
    'tree mallow', 'magnolia', 'cyclamen', 'watercress', 'canna lily', 'hippeastrum', 'bee balm', 'ball moss',
    'foxglove', 'bougainvillea', 'camellia', 'mallow', 'mexican petunia', 'bromelia', 'blanket flower',
    'trumpet creeper', 'blackberry lily',
)
_TINY_IMAGENET = (  # in the order of the WordNet ids, which name the folders
    'goldfish', 'European fire salamander', 'bullfrog', 'tailed frog', 'American alligator', 'boa constrictor',
    'trilobite', 'scorpion', 'black widow', 'tarantula', 'centipede', 'goose', 'koala', 'jellyfish', 'brain coral',
    'snail', 'slug', 'sea slug', 'American lobster', 'spiny lobster', 'black stork', 'king penguin', 'albatross',
    'dugong', 'Chihuahua', 'Yorkshire terrier', 'golden retriever', 'Labrador retriever', 'German shepherd',
    'standard poodle', 'tabby', 'Persian cat', 'Egyptian cat', 'cougar', 'lion', 'brown bear', 'ladybug', 'fly',
    'bee', 'grasshopper', 'walking stick', 'cockroach', 'mantis', 'dragonfly', 'monarch', 'sulphur butterfly',
    'sea cucumber', 'guinea pig', 'hog', 'ox', 'bison', 'bighorn', 'gazelle', 'Arabian camel', 'orangutan',
    'chimpanzee', 'baboon', 'African elephant', 'lesser panda', 'abacus', 'academic gown', 'altar', 'apron',
    'backpack', 'bannister', 'barbershop', 'barn', 'barrel', 'basketball', 'bathtub', 'beach wagon', 'beacon',
    'beaker', 'beer bottle', 'bikini', 'binoculars', 'birdhouse', 'bow tie', 'brass', 'broom', 'bucket',
    'bullet train', 'butcher shop', 'candle', 'cannon', 'cardigan', 'cash machine', 'CD player', 'chain', 'chest',
    'Christmas stocking', 'cliff dwelling', 'computer keyboard', 'confectionery', 'convertible', 'crane', 'dam',
    'desk', 'dining table', 'drumstick', 'dumbbell', 'flagpole', 'fountain', 'freight car', 'frying pan',
    'fur coat', 'gasmask', 'go-kart', 'gondola', 'hourglass', 'iPod', 'jinrikisha', 'kimono', 'lampshade',
    'lawn mower', 'lifeboat', 'limousine', 'magnetic compass', 'maypole', 'military uniform', 'miniskirt',
    'moving van', 'nail', 'neck brace', 'obelisk', 'oboe', 'organ', 'parking meter', 'pay-phone', 'picket fence',
    'pill bottle', 'plunger', 'pole', 'police van', 'poncho', 'pop bottle', "potter's wheel", 'projectile',
    'punching bag', 'reel', 'refrigerator', 'remote control', 'rocking chair', 'rugby ball', 'sandal', 'school bus',
    'scoreboard', 'sewing machine', 'snorkel', 'sock', 'sombrero', 'space heater', 'spider web', 'sports car',
    'steel arch bridge', 'stopwatch', 'sunglasses', 'suspension bridge', 'swimming trunks', 'syringe', 'teapot',
    'teddy', 'thatch', 'torch', 'tractor', 'triumphal arch', 'trolleybus', 'turnstile', 'umbrella', 'vestment',
    'viaduct', 'volleyball', 'water jug', 'water tower', 'wok', 'wooden spoon', 'comic book', 'plate', 'guacamole',
    'ice cream', 'ice lolly', 'pretzel', 'mashed potato', 'cauliflower', 'bell pepper', 'mushroom', 'orange',
    'lemon', 'banana', 'pomegranate', 'meat loaf', 'pizza', 'potpie', 'espresso', 'alp', 'cliff', 'coral reef',
    'lakeside', 'seashore', 'acorn',
)
_STL10 = ('airplane', 'bird', 'car', 'cat', 'deer', 'dog', 'horse', 'monkey', 'ship', 'truck')
_FASHION_MNIST = (
    'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot',
)
_DIGITS = tuple('0123456789')


@dataclass(frozen=True)
class DatasetInfo:
    """`label_names` is empty where the names are timm's own (ImageNet)."""
    title: str
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    label_names: tuple[str, ...] = ()


def _grey(value: float) -> tuple[float, float, float]:
    return value, value, value


# The keys are the data set part of a weight's tag.
DATASETS = {
    'c10': DatasetInfo('CIFAR-10', 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), _CIFAR10),
    'c100': DatasetInfo('CIFAR-100', 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), _CIFAR100),
    'fl102': DatasetInfo('Flowers-102', 102, (0.4353, 0.3773, 0.2872), (0.2966, 0.2455, 0.2698), _FLOWERS102),
    'svhn': DatasetInfo('SVHN', 10, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), _DIGITS),
    'timnet': DatasetInfo('Tiny-ImageNet', 200, (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), _TINY_IMAGENET),
    'cinic10': DatasetInfo('CINIC-10', 10, (0.47889, 0.47228, 0.43047), (0.24206, 0.23828, 0.25875), _CIFAR10),
    'stl10': DatasetInfo('STL-10', 10, (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713), _STL10),
    'mnist': DatasetInfo('MNIST', 10, _grey(0.1307), _grey(0.3081), _DIGITS),
    'fmnist': DatasetInfo('Fashion-MNIST', 10, _grey(0.2860), _grey(0.3530), _FASHION_MNIST),
    'digits': DatasetInfo('digits', 10, _grey(0.3087), _grey(0.3482), _DIGITS),
    'in1k': DatasetInfo('ImageNet-1k', 1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
