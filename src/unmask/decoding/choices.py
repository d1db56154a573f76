"""The names that --preset, --order, --schedule, --shape, --style and --sampler take, as help shows them.

They are words here, so that help needs no torch. A test compares them with the tables.
"""

PRESET_CHOICES = (
    "{besnier-256-8, besnier-512-15, maskgit-256-8, maskgit-512-12, halton-tiny-256-32, halton-small-256-32, "
    "halton-base-256-32, halton-small-384-32, halton-base-384-32, halton-large-384-32, titok-l32-256-8, "
    "titok-b64-256-8, titok-s128-256-64, besnier-nov23-256-8, besnier-nov23-512-15, halton-quickstart-384-32, ours-8, "
    "ours-16}"
)
ORDER_CHOICES = (
    "{confidence, confidence-without-noise, halton, random, margin, margin-repulsion, entropy, max-logit, raster, "
    "moment, halton-rolled}"
)
SHAPE_CHOICES = "{uniform, linear, pow2, square, pow3, pow0.5, root, cosine, arccos, sigmoid, log, exp}"
SCHEDULE_CHOICES = f"{SHAPE_CHOICES[:-1]}, halton-maskgit, valeoai-v1-SHAPE, google-SHAPE, x-transformers-SHAPE}}"
SAMPLER_CHOICES = "{parallel, remask, ancestral, remdm-cap, remdm-rescale, remdm-confidence, entropy-bound, threshold}"
STYLE_CHOICES = (
    "{google, valeoai-v1, halton-confidence, x-transformers, muse, halton, nanofm, llada, 4m, amused, titok}"
)
