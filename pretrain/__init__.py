"""Pretrain a vision tower by self-distillation: the loop is train.py, everything else is what it calls."""
