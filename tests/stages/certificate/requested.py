"""Requests for a certificate of a module, as at the end of a fit of 8 epochs."""

import torch

from ifloo.models import Adapted
from ifloo.models.run_state import RunState
from ifloo.stages.certificate.run_certificate import CertificateRequest, examined
from tests.stages.certificate.modules import Data

END = RunState(epoch=7, global_step=20, max_epochs=8)


def of(net, data=None, state=END, parameters=("*",), accept=False, **adapt):
    torch.manual_seed(0)
    module, data = net() if isinstance(net, type) else net, data or Data()
    loader, adapted = data.train_dataloader(), Adapted(module, **adapt)
    adapted.describe_fit(state, data, loader)
    return CertificateRequest(adapted, loader, state, data, parameters, accept=accept)


def certificate(net, data=None, **settings):
    return examined(of(net, data, **settings)).certificate
