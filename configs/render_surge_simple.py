"""Sounds of Surge XT with the parameters of Surge Simple (92 columns), and every value of a render config explained.

    python -m data_pipeline.render_shards --config=configs/render_surge_simple.py --output=data/surge_simple/shards \
        --shards=0-11 --samples_per_shard=10000 --workers=16 --seed=0

needs the plugin: `make surge-xt`, or --plugin=PATH.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """What decides the data set's content, and how its workers are watched."""
    c = ml_collections.ConfigDict()
    # A module of data_pipeline/synths, or the dotted path of one of yours.
    c.synth = "surge_xt"
    # What is drawn and what the columns mean: a name in data_pipeline/specs or the path of a .json.
    c.spec = "surge_simple"
    # A patch whose integrated loudness is lower, in LUFS, is drawn again.
    c.min_loudness = -55.0
    # A patch with a sample beyond this, 1.0 being 0 dBFS, is drawn again; float("inf") keeps all.
    c.max_peak = 1.0

    # Renders between checks that the synthesizer holds the patch it was given; each batch also ends with one.
    c.verify_every = 200
    # Rows rendered together and committed together: what a crash may cost.
    c.batch_rows = 16
    # A worker that says nothing for so long is replaced.
    c.render_seconds = 30.0
    # A worker that has grown beyond this, in GiB, is replaced.
    c.max_worker_gib = 2.0
    return c
