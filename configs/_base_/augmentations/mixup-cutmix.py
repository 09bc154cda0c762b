# Mixup or CutMix, each for half of the batches. The paper finds that both hurt compact networks;
# the strengths are those of mmpretrain's configs for DeiT.
mixup_cutmix = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
