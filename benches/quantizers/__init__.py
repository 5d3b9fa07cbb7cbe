"""The comparison of quantizers: one recipe, every quantizer, several seeds. Run it from a checkout.

``make results``, or ``PYTHONPATH=benches python -m quantizers --help``. ``docs/training.md`` shows
the results.
"""
