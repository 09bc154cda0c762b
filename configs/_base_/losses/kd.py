# (1 - alpha) CE + alpha tau^2 KL(teacher || student): form recalled from the paper, to be checked;
# alpha and tau: own choice, the paper's are not known.
kd_loss = dict(type='mmgnv3.KDLoss', alpha=0.5, tau=1.0)
