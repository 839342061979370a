"""`temporal_order`: does one sound come before or after the other, asked of both orders?

From Kuan and Lee, ICASSP 2025 (arXiv 2410.16130), about recordings of CompA-order (Ghosh et al., ICLR 2024). Read is
the Hugging Face set Audio-Hallucination_Temporal-Order_CompA-Order and CompA's folder `CompA_order_files`.
`yes_no_pairs` says what its columns are, what is official and what is ours.
"""

from functools import partial

from balsa_ray.evaluation import yes_no_pairs

PARSERS, NEEDS = yes_no_pairs.PARSERS, yes_no_pairs.NEEDS
read = partial(yes_no_pairs.read, name="temporal_order")
templates_hash, plan, score = yes_no_pairs.templates_hash, yes_no_pairs.plan, yes_no_pairs.score
parse, correct, judge_prompt = yes_no_pairs.parse, yes_no_pairs.correct, yes_no_pairs.judge_prompt
