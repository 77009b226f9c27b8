"""The paper's headline claims beside ours, with a verdict each. No torch.

Claims about AssyLLM are judged for ``assyllm_paper``, the method as the paper describes it, and then for ``assyllm``.
The paper's values come from ``paper_values.csv``; ours from the other result tables, never typed in here.
"""
