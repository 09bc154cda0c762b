# Mixup or CutMix, each for half of the batches. The paper says that both hurt compact networks; its
# strengths are not known: these are those of mmpretrain's configs for DeiT.
mixup_cutmix = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
