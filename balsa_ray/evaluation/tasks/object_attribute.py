"""`object_attribute`: who or what makes which sound, asked of the recording and of its counterpart?

From Kuan and Lee, ICASSP 2025 (arXiv 2410.16130), about recordings of CompA-attribute (Ghosh et al., ICLR 2024). Read
is the Hugging Face set Audio-Hallucination_Object-Attribute_CompA-Attribute and CompA's folder of recordings.
`yes_no_pairs` says what its columns are, what is official and what is ours.
"""

from functools import partial

from balsa_ray.evaluation import yes_no_pairs

PARSERS, NEEDS = yes_no_pairs.PARSERS, yes_no_pairs.NEEDS
read = partial(yes_no_pairs.read, name="object_attribute")
templates_hash, plan, score = yes_no_pairs.templates_hash, yes_no_pairs.plan, yes_no_pairs.score
parse, correct, judge_prompt = yes_no_pairs.parse, yes_no_pairs.correct, yes_no_pairs.judge_prompt
