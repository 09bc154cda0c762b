# The defaults of the public train.py, none of which the paper is known to use: cross-entropy,
# smoothed by 0.1, plus the cross-entropy to the teacher's probabilities at temperature 1, each with
# weight 1 (twice a half).
kd_loss = dict(
    type='mmgnv3.KDLoss',
    alpha=0.5,
    loss_weight=2.0,
    tau=1.0,
    divergence='cross_entropy',
    label_smooth_val=0.1,
)
