"""Success rates that can be trusted: named protocols, one row an episode, intervals on every rate.

perturb     changes of images, scene and wording       results     protocols, rows, rates, paired comparisons
rollouts    episodes in parallel, one policy for all   report      pages and figures of results
sweep       checkpoints x protocols, here or on SLURM  study       the paper's questions at a small scale
speed       throughput of model, loader, construction and evaluation
"""
