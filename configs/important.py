"""Every hyperparameter with its explanation; the other flow configs change a few of these values.

    python -m synthjax.train --config=configs/important.py --workdir=runs/important --config.data.root=DATA

Any value can be set on the command line: --config.optim.lr=5e-5. Variants: synthjax/runs/variants.py. Made for one GPU
or TPU; time and scores there: not measured. Measured with batch 16 in float32 on two CPU cores: 1.9 samples/s (Intel
Xeon) to 3.6 samples/s (AMD EPYC with AVX-512).
"""

import ml_collections

from synthjax.runs.variants import apply_variants


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The base experiment: 13.4 M parameters in the encoder, 26.5 M in the vector field."""
    c = ml_collections.ConfigDict()

    # The seed of initial weights, row order, noise, times and guidance dropout.
    c.seed = 0
    # A bundle, by its name, path or URL, whose model the run begins with: weights and statistics. "": a new model.
    c.start_from = ""
    # dtype of activations and matrix products. Parameters, losses and the optimizer are always float32.
    c.compute_dtype = "bfloat16"
    # auto: cuDNN's fused attention in bfloat16 on NVIDIA GPUs, if it works there. xla: attention compiled by XLA.
    c.attention = "auto"

    c.data = data = ml_collections.ConfigDict()
    # shards: sounds and rows of a data set. render: rows that are drawn and rendered as training needs them.
    # k_osc: the paper's synthetic task (configs/k_osc.py).
    data.source = "shards"
    # Folder with train.h5, val.h5, test.h5 (data_pipeline.splits) and stats.npz (data_pipeline.stats).
    data.root = "data"
    # The spec, which says what the columns of a row mean: a name in data_pipeline/params/specs or a path of a .json.
    data.spec = "surge_simple"
    # Rows of a batch over all devices. Above 128 it must be a multiple of 128, the size of a coupling group.
    data.batch_size = 128
    # Processes on every host that read, or render, and couple batches ahead of the step; 0: the training process does.
    data.workers = 2
    # Where training spectrograms stay after they are read, 205 kB a row (410 kB of float32 shards). none: on disk.
    # host: in memory, once for all processes of a machine or container. device: in the accelerators' memory, split over
    # mesh.data. The batches are the same.
    data.cache = "none"
    # Smaller standard deviations in stats.npz, in dB, are raised to this; 0 for models of the PyTorch code.
    data.min_std_db = 1.0
    # The next four are for data.source=render. A folder of preset files, whose patches are mixed; without one the
    # weights in the spec draw the rows.
    data.prior = ""
    # The seed of the rows.
    data.seed = 0
    # The number of steps that use each row, for models that learn faster than rows are made. Above 1, data.workers must
    # divide 24.
    data.reuse = 1
    # How likely a training sound is corrupted in each way, from 0 to 1, as recordings are: detuning by up to 40 cents,
    # cuts, reverberation, noise, an equaliser, MP3. Reverberation (room), equaliser and codec need pedalboard.
    data.corruption = ml_collections.ConfigDict()
    data.corruption.detune = 0.0
    data.corruption.cut = 0.0
    data.corruption.room = 0.0
    data.corruption.noise = 0.0
    data.corruption.equaliser = 0.0
    data.corruption.codec = 0.0
    # Whether virtual sources and external links outside the data set's parent folder may be read.
    data.allow_external = False

    c.model = model = ml_collections.ConfigDict()
    # flow: encoder and vector field. Baselines: regression (configs/regression.py), flow_vae (configs/flow_vae.py).
    model.kind = "flow"

    # Spectrogram (2, 128, 401) -> one conditioning row for each layer of the vector field.
    model.encoder = encoder = ml_collections.ConfigDict()
    # ast: audio spectrogram transformer. cnn: residual 2-D CNN. spectral: only for configs/k_osc.py.
    encoder.kind = "ast"
    # Width of tokens, feed-forward layers and conditioning rows.
    encoder.dim = 512
    encoder.layers = 8
    encoder.heads = 8
    # Size of a patch and step to the next one, in (mels, frames). Patches overlap where the stride is smaller.
    encoder.patch = (16, 16)
    encoder.stride = (10, 10)
    # True only for models imported from the PyTorch code, which swaps the zero paddings of the two axes.
    encoder.swapped_padding = False
    # Only for cnn: channels of the first stage (each further stage doubles them), stages, residual blocks per stage.
    encoder.cnn_channels = 32
    encoder.cnn_stages = 5
    encoder.cnn_blocks = 2

    # The vector field: the velocity of a parameter row at time t, given the conditioning.
    model.field = field = ml_collections.ConfigDict()
    # transformer: DiT blocks on tokens. mlp: residual blocks on whole rows (configs/flow_mlp.py).
    field.kind = "transformer"
    # How rows become tokens. param2tok: learned. oscillators: one token for each, only for the k-osc task.
    field.projection = "param2tok"
    field.dim = 512
    field.layers = 8
    field.heads = 8
    field.ff_dim = 512
    # Number of tokens over which Param2Tok distributes the parameters.
    field.tokens = 128
    # Width of the sinusoidal time encoding; 1: t itself.
    field.time_features = 256
    # Standard deviation of the initial differences between the parameters' embeddings. With the paper's 1e-4 the
    # assignment finds symmetries; with 0.1 a small model learns from its first hundred steps on.
    field.init_noise = 1e-4

    c.flow = flow = ml_collections.ConfigDict()
    # Probability that an example is trained without its sound, for classifier-free guidance.
    flow.guidance_dropout = 0.1
    # Weight of the penalty mean |A|, where A assigns parameters to tokens.
    flow.projection_penalty = 0.01
    # Pair noise and data rows by minibatch optimal transport, in groups of min(128, batch).
    flow.coupling = True

    c.optim = optim = ml_collections.ConfigDict()
    # adam, or adamw with decoupled weight decay.
    optim.name = "adam"
    optim.lr = 1e-4
    # The learning rate falls as a cosine from lr at the end of warm-up to final_lr at train.steps.
    optim.final_lr = 1e-6
    optim.warmup_steps = 0
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    optim.weight_decay = 0.0
    # Gradients with a larger global norm are scaled down to this norm.
    optim.clip_norm = 0.5
    # Decay of the average of the weights, which evaluation uses. At step n it is at most (1 + n) / (10 + n).
    optim.ema_decay = 0.999

    c.train = train = ml_collections.ConfigDict()
    train.steps = 50_000
    train.log_every = 50
    # Number of parts of a batch whose gradients are computed in turn and averaged. More parts take less memory.
    train.accumulate = 1
    # Results that the backward pass computes again to save memory. elementwise: all but matrix products, attention and
    # the statistics of norms. layers: whole layers, which takes a third more time. none: nothing.
    train.remat = "elementwise"
    # Steps between validations on val.h5, with images in TensorBoard; 0 turns both off.
    train.eval_every = 1_000

    # Validation during training, with the averaged weights.
    c.validation = validation = ml_collections.ConfigDict()
    # Number of rows of val.h5 for the velocity loss, and its times. The noise is fixed.
    validation.rows = 1_024
    validation.times = (0.1, 0.3, 0.5, 0.7, 0.9)
    # Number of rows sampled for the parameter error, from fixed noise. A coarse solver is enough to compare steps.
    validation.sampled_rows = 128
    validation.solver = "heun"
    validation.solver_steps = 20
    validation.guidance = 1.0
    # Number of sampled rows that one process of low priority also renders during training. TensorBoard then has their
    # sounds, pictures and MSS, 1 MB a sound. 0 turns it off. It needs the synthesizer.
    validation.probe_sounds = 8

    # How evaluate and predict draw rows.
    c.sampling = sampling = ml_collections.ConfigDict()
    # rk4, heun, euler: 4, 2, 1 evaluations of the field per step. dopri5: 6 per step, and as many steps as a row needs.
    sampling.solver = "rk4"
    # Number of steps, ignored by dopri5. scripts/compare_solvers.py measures what is enough; the paper uses 100.
    sampling.steps = 5
    # Absolute and relative error of a step of dopri5. It is larger for a row that would need more than 1,000 steps.
    sampling.tolerance = 1e-4
    # Guidance strength s: v = (1 - s) v(none) + s v(sound); 1 is no guidance.
    sampling.guidance = 2.0
    # Times between which guidance applies, from 0 (noise) to 1 (data). Outside them a step costs half.
    sampling.guidance_interval = (0.0, 1.0)
    # Rows that are sampled at once.
    sampling.batch_size = 64

    c.checkpoint = checkpoint = ml_collections.ConfigDict()
    # Steps between checkpoints. Another one is written whenever the validation loss is the best so far.
    checkpoint.every = 1_000
    # Number of latest checkpoints that are kept. The one with the best validation loss is kept as well.
    checkpoint.keep = 3

    c.mesh = mesh = ml_collections.ConfigDict()
    # Devices that split the batch (data; -1: all that are left), and devices that split heads and feed-forward layers
    # (model).
    mesh.data = -1
    mesh.model = 1
    # Groups of devices joined only by a slower network: slices of a TPU pod, or else processes. They split the batch.
    mesh.slices = 1
    # Whether parameters, their average and the optimizer's state are also split over the data axis between steps.
    mesh.fsdp = False

    # Steps, such as "100:110", whose trace is written for TensorBoard's Profile tab (pip install xprof).
    c.profile = ""
    # Whether to log to Weights & Biases as well (pip install synthjax[wandb]; WANDB_MODE=offline works).
    c.wandb = False

    return apply_variants(c, arg)
