"""Distillation inside other training loops: ``lightning`` and ``transformers``, each imported only if you import it.

Both take a ``Distiller`` and need the extra of their name (``lightning``, ``hf``).
"""
