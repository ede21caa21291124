"""Sounds of Surge XT with the parameters of Surge Simple (92 columns), and every value of a render config explained.

    python -m data_pipeline.render_shards --config=configs/render_surge_simple.py --output=data/surge_simple/shards \
        --shards=0-11 --samples_per_shard=10000 --workers=16 --seed=0

needs the plugin: `make surge-xt`, or --plugin=PATH. Measured on two cores of an Intel Xeon with a local build of 1.3.4:
10.4 accepted rows/s with 1 worker, 19.1 with 2.
"""

import ml_collections

from data_pipeline.audio.contract import MIN_LOUDNESS


def get_config() -> ml_collections.ConfigDict:
    """The settings that decide the data set's content, and the limits of its workers."""
    c = ml_collections.ConfigDict()
    # A module of data_pipeline/synths, or the dotted path of one of yours.
    c.synth = "surge_xt"
    # The spec, which says how parameters are drawn and stored: a name in data_pipeline/params/specs or a path of a
    # .json.
    c.spec = "surge_simple"
    # A patch with a lower integrated loudness, in LUFS, is drawn again; -55.0 by the sound contract.
    c.min_loudness = MIN_LOUDNESS
    # A patch with a larger sample (1.0 is 0 dBFS) is drawn again; float("inf") keeps all patches.
    c.max_peak = 1.0

    # Number of renders between checks that the synthesizer holds the patch it was given. Each batch also ends with one.
    c.verify_every = 200
    # Rows rendered and committed together. A crash loses at most this many.
    c.batch_rows = 16
    # A worker that sends nothing for this many seconds is replaced.
    c.render_seconds = 30.0
    # A worker that uses more memory, in GiB, is replaced.
    c.max_worker_gib = 2.0
    return c
