"""Program started by the tests: a fit with or without the callback, in several processes.

Arguments: number of processes, `with` or `without`, folder for scores and weights.
"""

import sys
import warnings

import lightning as L
import torch

from ifloo.stages import InfluenceCallback
from tests.stages.callback.fits import Stated, fitted, loader, samples


def main(devices: int, variant: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    L.seed_everything(0, verbose=False)
    callbacks = [InfluenceCallback(samples(2, seed=1)[:], every_n_epochs=1)] if variant == "with" else []
    module = Stated()
    trainer = fitted(module, loader(), callbacks, folder, devices=devices, strategy="ddp" if devices > 1 else "auto")
    torch.save(module.state_dict(), f"{folder}/{variant}_{trainer.global_rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
