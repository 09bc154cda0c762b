# The loss of kd.py for CIFAR-10. alpha and tau: own choice; a temperature of 4 is what published
# code on CIFAR mostly has.
kd_loss = dict(type='mmgnv3.KDLoss', alpha=0.5, tau=4.0)
