"""The closed loop inside other people's trainers: a callback each for Lightning and for Hugging Face Transformers.

``edgelean.integrations.lightning`` and ``edgelean.integrations.transformers`` are imported on their own, as each needs
its trainer: ``pip install 'edgelean[lightning]'``, ``pip install 'edgelean[transformers]'``.
"""
