"""The papers' ablation tables: what each row trains and how it is tested, trained once where rows share it."""
