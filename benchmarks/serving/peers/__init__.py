"""What Switchyard is measured against, one small file each: `python -m benchmarks.serving.peers.<name> PORT MODEL`.

A peer loads the pickled model, listens on 127.0.0.1 and answers `POST /predict` with a body of one record; all of them
run with one thread for BLAS and their own defaults otherwise, tuned as their documentation says.
"""
