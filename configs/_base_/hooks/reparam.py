# Folds a copy of the trained network when training ends, and the network under test.
reparam_hook = dict(type='mmgnv3.ReparamHook')
