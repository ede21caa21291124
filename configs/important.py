"""Every hyperparameter, written out and explained; the other flow configs change a few of these values.

    python -m synthjax.train --config=configs/important.py --workdir=runs/important --config.data.root=DATA

Any value can be set on the command line: --config.optim.lr=5e-5. Variants: see configs/variants.py.
"""

import ml_collections

from configs.variants import apply_variants


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The base experiment: 13.4 M parameters in the encoder, 26.5 M in the vector field."""
    c = ml_collections.ConfigDict()

    # All randomness (initial weights, row order, noise, times, guidance dropout) comes from this number.
    c.seed = 0
    # Activations and matrix products; parameters, losses and the optimizer are float32 whatever this says.
    c.compute_dtype = "bfloat16"
    # auto: cuDNN's fused attention in bfloat16 on NVIDIA GPUs, if it works there. xla: what XLA makes of the formula.
    c.attention = "auto"

    c.data = data = ml_collections.ConfigDict()
    # shards: sounds and rows of a data set. k_osc: the paper's synthetic task (configs/k_osc.py).
    data.source = "shards"
    # Folder with train.h5, val.h5, test.h5 (data_pipeline.splits) and stats.npz (data_pipeline.stats).
    data.root = "data"
    # What the columns of a parameter row mean: a name in data_pipeline/specs or the path of a .json.
    data.spec = "surge_simple"
    # Global batch over all devices. Above 128 a multiple of 128, so that coupling groups are whole.
    data.batch_size = 128
    # Processes that read and couple batches ahead of the step, on every host; 0 reads in the training process.
    data.workers = 2
    # Where the training spectrograms stay once they are read, 205 kB a row (of float32 shards 410). none: on disk.
    # host: in memory, once for all processes of a machine or container. device: in the accelerators' memory, split over
    # mesh.data. Same batches anyhow.
    data.cache = "none"
    # Standard deviations in stats.npz below this count as this, in dB; 0 for models of the PyTorch code.
    data.min_std_db = 1.0
    # Read virtual sources and external links that lie outside the data set's parent folder.
    data.allow_external = False

    c.model = model = ml_collections.ConfigDict()
    # flow: encoder and vector field. The baselines: regression (configs/regression.py), flow_vae (flow_vae.py).
    model.kind = "flow"

    # Spectrogram (2, 128, 401) -> one conditioning row for each layer of the vector field.
    model.encoder = encoder = ml_collections.ConfigDict()
    # ast: audio spectrogram transformer. cnn: residual 2-D CNN. (spectral: of configs/k_osc.py alone.)
    encoder.kind = "ast"
    # Width of tokens, feed-forward layers and conditioning rows.
    encoder.dim = 512
    encoder.layers = 8
    encoder.heads = 8
    # Patches of (mels, frames), and from one to the next; they overlap where the stride is smaller.
    encoder.patch = (16, 16)
    encoder.stride = (10, 10)
    # True only for models imported from the PyTorch code, which exchanges the two zero paddings.
    encoder.swapped_padding = False
    # The CNN: channels of the first stage (doubled at every further one), stages, residual blocks a stage.
    encoder.cnn_channels = 32
    encoder.cnn_stages = 5
    encoder.cnn_blocks = 2

    # Velocity of a parameter row at time t, given the conditioning.
    model.field = field = ml_collections.ConfigDict()
    # transformer: DiT blocks on tokens. mlp: residual blocks on whole rows (configs/flow_mlp.py).
    field.kind = "transformer"
    # How rows become tokens. param2tok: learned. oscillators: one token each, for the k-osc task alone.
    field.projection = "param2tok"
    field.dim = 512
    field.layers = 8
    field.heads = 8
    field.ff_dim = 512
    # Tokens that Param2Tok distributes the parameters over.
    field.tokens = 128
    # Width of the sinusoidal time encoding; 1 feeds t itself.
    field.time_features = 256
    # What tells the parameters' embeddings apart at first, standard deviation. This is the paper's, with which the
    # assignment finds symmetries; with 0.1 a small model learns from its first hundred steps on.
    field.init_noise = 1e-4

    c.flow = flow = ml_collections.ConfigDict()
    # Chance that an example is trained without its sound, for classifier-free guidance.
    flow.guidance_dropout = 0.1
    # Weight of mean |A|, A the assignment of parameters to tokens.
    flow.projection_penalty = 0.01
    # Pair noise and data rows by minibatch optimal transport, in groups of min(128, batch).
    flow.coupling = True

    c.optim = optim = ml_collections.ConfigDict()
    # adam, or adamw for decoupled weight decay.
    optim.name = "adam"
    optim.lr = 1e-4
    # Cosine from lr at the end of warm-up to final_lr at train.steps.
    optim.final_lr = 1e-6
    optim.warmup_steps = 0
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    optim.weight_decay = 0.0
    # Gradients are scaled down to this global norm.
    optim.clip_norm = 0.5
    # Average of the weights that evaluation uses; the decay of step n is at most (1 + n) / (10 + n).
    optim.ema_decay = 0.999

    c.train = train = ml_collections.ConfigDict()
    train.steps = 50_000
    train.log_every = 50
    # Parts of a batch whose gradients are computed one after the other and averaged, for less memory: same figures.
    train.accumulate = 1
    # What the backward pass computes again for less memory. elementwise: all but matrix products, attention and the
    # statistics of norms; layers: whole layers, for a third more time; none.
    train.remat = "elementwise"
    # Validation on val.h5 and the images in TensorBoard; 0 turns both off.
    train.eval_every = 1_000

    # Validation while training, on the averaged weights.
    c.validation = validation = ml_collections.ConfigDict()
    # Rows of val.h5 for the velocity loss, with fixed noise, at these times.
    validation.rows = 1_024
    validation.times = (0.1, 0.3, 0.5, 0.7, 0.9)
    # Rows that are sampled, with fixed noise, for the parameter error; a coarse solver is enough to compare.
    validation.sampled_rows = 128
    validation.solver = "heun"
    validation.solver_steps = 20
    validation.guidance = 1.0
    # The first so many of the sampled rows are also rendered, beside training and by one process of low priority, to
    # be heard, seen and measured (MSS) in TensorBoard, at 1 MB a sound; 0 turns it off. It needs the synthesizer.
    validation.probe_sounds = 8

    # How evaluate and predict draw rows.
    c.sampling = sampling = ml_collections.ConfigDict()
    # rk4, heun or euler: 4, 2 or 1 evaluations of the field a step. dopri5: as many steps, of 6, as each row needs.
    sampling.solver = "rk4"
    # How many (without meaning for dopri5): scripts/compare_solvers.py measures it (README); the paper's are 100.
    sampling.steps = 5
    # Error of a step of dopri5, absolute and relative; a row for which 1,000 steps do not suffice has a larger one.
    sampling.tolerance = 1e-4
    # v = (1 - s) v(none) + s v(sound); 1 is no guidance.
    sampling.guidance = 2.0
    # Times between which there is guidance, from 0 (noise) to 1; outside of them a step costs half.
    sampling.guidance_interval = (0.0, 1.0)
    sampling.batch_size = 64

    # How predict ranks the rendered candidates of a sound, and what --refine lowers: weights of distances to it.
    c.ranking = ranking = ml_collections.ConfigDict()
    # Multi-scale spectral distance, in dB.
    ranking.mss = 1.0
    # Warped distance of mel frequency cepstra, whose figures are about twice as large.
    ranking.wmfcc = 0.5
    # What the cosine of loudness over time lacks to 1. Spectra alone, warped in time, take a short sound at the wrong
    # time for a near one.
    ranking.rms = 10.0

    c.checkpoint = checkpoint = ml_collections.ConfigDict()
    # Steps between checkpoints; one more is written whenever validation is the best so far.
    checkpoint.every = 1_000
    # The latest so many are kept, and the best by validation loss.
    checkpoint.keep = 3

    c.mesh = mesh = ml_collections.ConfigDict()
    # Devices that split the batch, times devices that split heads and feed-forward layers; data=-1: all the rest.
    mesh.data = -1
    mesh.model = 1
    # Groups of devices that only a slower network joins: slices of a TPU pod, or else processes. They split the batch.
    mesh.slices = 1
    # Split parameters, their average and the optimizer's state over the data axis too, between steps.
    mesh.fsdp = False

    # Steps to write a trace of for TensorBoard's Profile tab (pip install xprof), such as "100:110".
    c.profile = ""
    # Log to Weights & Biases as well (pip install synthjax[wandb]; WANDB_MODE=offline works).
    c.wandb = False

    return apply_variants(c, arg)
