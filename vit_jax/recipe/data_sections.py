"""The keys of section `data` of a recipe, with their defaults.

See `vit_jax.recipe.sections` for the other sections.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

from vit_jax.data.decode import MAX_PIXELS

placeholder = config_dict.placeholder
Config = Any  # as in `vit_jax.recipe.sections`


def data() -> Config:
  """Source of the images, and what the host does to them."""
  c: Config = ConfigDict()
  # 'digits', 'folder', 'packed', 'synthetic', 'tfds:NAME' (array_record), or
  # 'vtab:TASK' for a task of VTAB-1k.
  c.source = 'digits'
  # Image folder, packed directory, or data_dir of TFDS.
  c.dir = ''
  # Training split; sub-splits as in TFDS: 'train[:98%]'.
  c.split = 'train'
  # Directory of pseudo-labeled images (`vit-jax pseudo-label`) to train on
  # besides those of `split`; '' for none.
  c.pseudo_dir = ''
  # Number of images of the last split, the pseudo-labeled ones, in a batch for
  # each image of the other splits; 0 shuffles all images together.
  c.pseudo_ratio = 0
  # Fraction of every class that is held out as the split 'test', for a folder
  # of classes without train/. With 0 nothing is evaluated, unless eval.sets
  # names other data.
  c.holdout = 0.1
  # Number of classes, for synthetic and packed data. Other sources know theirs.
  c.num_classes = placeholder(int)
  # Number of images, for synthetic data.
  c.num_examples = placeholder(int)
  # Images of one step, on all devices together.
  c.batch_size = 128
  # Size of the model's images in pixels: the height, and the width too unless
  # image_width is set.
  c.image_size = 224
  c.image_width = placeholder(int)
  # Crop of training images: 'inception' (a box of random area and aspect ratio,
  # resized to the image size), 'resize_crop' (shorter side to data.resize, then
  # a random crop), 'squash_crop' (both sides to data.resize, then the same),
  # 'pad_crop' (pad by data.pad, random crop of the old size, resize; for
  # CIFAR), 'resize' (both sides to the image size), 'none'.
  c.crop = 'inception'
  # What an inception crop draws uniformly: the 'area' (torchvision, timm), or
  # the 'height' (TensorFlow), with which small crops are more frequent.
  c.crop_sampling = 'area'
  # Range of an inception crop's area, as fractions of the image's.
  c.area = (0.05, 1.0)
  # Range of an inception crop's width / height.
  c.aspect = (3 / 4, 4 / 3)
  # Size before the crop in pixels: of the shorter side for 'resize_crop', of
  # both sides for 'squash_crop'.
  c.resize = placeholder(int)
  # Pixels that 'pad_crop' adds on each side.
  c.pad = 4
  # How training images are resized: one of `preprocessing.INTERPOLATIONS`
  # ('bilinear' is TensorFlow's, 'bicubic' Pillow's), or 'random' (Pillow's
  # bilinear or bicubic for each image, as in timm).
  c.interpolation = 'bilinear'
  # How the pixels of TensorFlow's interpolations become integers: 'nearest',
  # 'truncate' (big_vision), or 'none', which keeps float32 (vision_transformer)
  # and sends four times the bytes to the device.
  c.rounding = 'nearest'
  # Decoding of JPEGs: 'accurate' (Pillow's pixels), or 'fast' (TensorFlow's
  # default, in Google's recipes), which needs the package simplejpeg.
  c.jpeg_dct = 'accurate'
  # Probability of a horizontal flip.
  c.flip = 0.5
  # RandAugment: '' for none, 'google(LAYERS,MAGNITUDE)' as in AugReg, such as
  # 'google(2,15)', or a policy of timm, such as 'rand-m9-mstd0.5-inc1'.
  c.randaugment = ''
  # Strength of brightness, contrast and saturation jitter, without RandAugment.
  c.color_jitter = 0.0
  # Repeated augmentation: how often an image occurs in the batch, and the
  # number of equal consecutive groups of the batch over which it is spread.
  c.repeats = 1
  c.repeat_groups = 1
  # Normalization of pixels, on the device: 'half' (to [-1, 1]), 'imagenet' (by
  # ImageNet's mean and standard deviation), 'unit' (to [0, 1]),
  # 'range(LOW,HIGH)', or 'mean_std(R,G,B,R,G,B)' with the mean and the standard
  # deviation of pixels in [0, 1].
  c.normalize = 'half'
  _add_loading(c)
  return c


def _add_loading(c: Config) -> None:
  """The keys of section `data` that say how images are read and kept."""
  # Take every folder of data.dir for a class, also one named 'train' or 'test'.
  c.flat = False
  # If class names are known on both sides, whether the numbers of classes
  # follow their 'names', or are taken as they are ('numbers'). 'new' starts
  # with a new head for the classes of the data; only with run.pretrained.
  c.match_classes = 'names'
  # Go on in a workdir although the training examples have changed.
  c.may_change = False
  # Turn images upright by their EXIF orientation, which published pipelines
  # ignore.
  c.upright = True
  # Decode training JPEGs at 1/2, 1/4 or 1/8 of their size, if the shorter side
  # keeps so many pixels. It saves time with large photos, and the pixels are
  # not those of the published recipes. 0: in full.
  c.jpeg_min_side = 0
  # Larger images count as corrupt; they are not decoded.
  c.max_pixels = MAX_PIXELS
  # The run stops if more than this fraction of the images cannot be read.
  c.max_bad_fraction = 0.01
  # Hold a small data set on the device: 'on', 'off', or 'auto' (if that is
  # possible and takes at most 1 GiB).
  c.device_cache = 'auto'
  # Height and width of the images that the host makes; the device resizes them
  # to the image size. By default the host makes the image size.
  c.device_resize = placeholder(int)
  # Threads that decode images, in each process of the run.
  c.threads = 4
  # Processes that decode images, for each process of the run; 0 for none.
  c.workers = 0
  # Batches that are kept ready on the device.
  c.prefetch = 2
  # Directory of token labels (`vit-jax token-labels`), '' for none.
  c.labels = ''
  # Exchange rows and columns of crops in token labels, as VOLO's code does.
  c.labels_swap_axes = False


def augmentation() -> Config:
  """Keys of section data that say what the device does to training images."""
  c: Config = ConfigDict()
  # Alpha of the Beta distribution for mixup and for CutMix; 0 for none.
  c.mixup = 0.0
  c.cutmix = 0.0
  # Probability of CutMix instead of mixup, if both are on.
  c.switch_prob = 0.5
  # Probability that a batch is mixed at all.
  c.mix_prob = 1.0
  # Which image each image is mixed with: 'timm' (the one in the reversed
  # batch), 'google' (the one before it, with a coefficient of at least 1/2) or
  # 'permute' (the one in a random permutation).
  c.mix_style = 'timm'
  # Examples that share a coefficient, of `mixing.MODES`: 'batch' (all), 'pair'
  # (an image and its partner) or 'elem' (each has its own), as in timm.
  c.mix_mode = 'batch'
  # Number of groups of the batch. Images are mixed within a group, and each
  # group has its own coefficient, as when that many processes trained.
  c.mix_groups = 1
  # Probability of random erasing.
  c.erasing = 0.0
  # Erase after mixing instead of before.
  c.erase_mixed = False
  return c
