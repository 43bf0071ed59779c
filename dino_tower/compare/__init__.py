"""`dino-tower compare-objectives`: the same data, architecture and budget for each objective, one report.

It joins two rooms through run directories, as a person would: `pretrain` writes each run in a process of its own,
`eval` judges its towers. `pretraining` and `benchmarking` are the doors to the two; nothing else here knows them.
"""
