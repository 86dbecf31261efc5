"""The field's benchmarks, one module each: official data files in, requests and scores out."""
