"""How fast, beside whom, and how far from what the machine can do.

    python -m minivmamba.bench scan         one selective scan, against other scans and the floors
    python -m minivmamba.bench model        VMamba-T, against Swin-T, ConvNeXt-T, DeiT-S, ResNet-50
    python -m minivmamba.bench train        one training step of each, and its memory
    python -m minivmamba.bench resolution   how the time of an image grows with its pixels

Every number that counts is a ratio of contestants that took turns in one run: seconds belong to
a machine and its mood, and are printed only for information. Read `timing`, then a command.
"""
