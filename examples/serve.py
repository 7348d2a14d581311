"""An image classifier that follows the class mix of its own unlabelled traffic.

    pip install "priorshift[serve]"
    priorshift export RUN -o model.onnx
    python serve.py

`POST /predict` takes images as raw bytes, float32 `[N, channels, height, width]` between 0 and 1, and answers
at once with the mix known so far. Another thread takes the logits that came, estimates the mix and saves the
state. So a service that is killed loses what came since the last save, SECONDS ago or a little more, and goes
on with the rest when it is started again. Run one process for each state file; `StreamingPrior.merge` joins
the states of several.
"""

import json
import logging
import os
import threading
from collections import deque
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import uvicorn
from fastapi import Body, FastAPI, HTTPException

from priorshift import Prior
from priorshift.streams import StreamingPrior

MODEL, STATE = os.environ.get("MODEL", "model.onnx"), Path(os.environ.get("STATE", "state.safetensors"))
HALF_LIFE = float(os.environ.get("HALF_LIFE", "10000"))  # so many images later, one counts half
SECONDS = float(os.environ.get("SECONDS", "2"))  # from one estimate to the next

os.environ.setdefault("OMP_NUM_THREADS", "1")  # estimating leaves the other cores to the requests
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1  # requests run side by side
options.log_severity_level = 3  # it would warn that the target prior is an input
model = onnxruntime.InferenceSession(MODEL, options)
about = json.loads(model.get_modelmeta().custom_metadata_map["priorshift"])
carried, names, shape = Prior(about["carried"]), about["class_names"], about["input_shape"]


class Mix:
    """The class mix of the traffic: requests add to `new` and read `log_target`, one thread learns."""

    def __init__(self) -> None:
        self.new: deque[np.ndarray] = deque(maxlen=100_000)  # where learning is slower, the oldest are lost
        self.stream = (
            StreamingPrior.load(STATE) if STATE.is_file() else StreamingPrior(carried, half_life=HALF_LIFE)
        )
        if not self.stream.carried.matches(carried):
            raise ValueError(f"{STATE} is of another model than {MODEL}.")
        self.publish()

    def publish(self) -> None:
        """What requests read."""
        self.log_target = self.stream.target.log_probs.astype(np.float32)
        self.images = self.stream.num_samples

    def learn(self) -> None:
        """Take what came, estimate, and save: a file that is whole or that of before."""
        batches = [self.new.popleft() for _ in range(len(self.new))]
        if batches:
            self.stream.update(np.concatenate(batches))
            self.publish()
            self.stream.save(STATE)

    def keep_learning(self, stop: threading.Event) -> None:
        """Learn every so often, and once more at the end."""
        stopped = False
        while not stopped:
            stopped = stop.wait(SECONDS)
            try:
                self.learn()
            except Exception:
                logging.exception("The mix could not be learnt this time; answers go on with the last one.")


@asynccontextmanager
async def lifespan(_: FastAPI):
    """Learn while requests are answered."""
    stop = threading.Event()
    learner = threading.Thread(target=mix.keep_learning, args=[stop])
    learner.start()
    yield
    stop.set()
    learner.join()


mix, app = Mix(), FastAPI(lifespan=lifespan)


@app.post("/predict")
def predict(body: Annotated[bytes, Body(media_type="application/octet-stream")]) -> list[dict]:
    """The most likely class of each image, and how likely it is."""
    try:
        images = np.frombuffer(body, "<f4").reshape(-1, *shape)
    except ValueError as error:
        raise HTTPException(422, f"Expected float32 of shape [N, {shape}]: {error}") from error
    if not images.size or not np.isfinite(images).all():
        raise HTTPException(422, "Expected one image at least, of finite numbers.")
    inputs = {about["input_name"]: images, "log_target_prior": mix.log_target}
    probabilities, logits = model.run(["probabilities", "logits"], inputs)
    mix.new.append(logits)
    return [{"class": names[row.argmax()], "probability": float(row.max())} for row in probabilities]


@app.get("/mix")
def read_mix() -> dict:
    """How many images the mix was learnt from, and the mix."""
    return {"images": mix.images, "mix": dict(zip(names, np.exp(mix.log_target).tolist(), strict=True))}


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), log_level="warning")
