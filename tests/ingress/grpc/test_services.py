"""The services of the protos and what answers them."""

from __future__ import annotations

import pytest

from cluster.ingress.grpc.services import ADMIN
from cluster.supervisor.operations.messages import OPERATIONS, Operation


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_has_a_method_whose_request_has_its_fields(operation: type[Operation]) -> None:
    method = ADMIN.descriptor.methods_by_name[operation.__name__]
    assert tuple(field.name for field in method.input_type.fields) == operation.__struct_fields__
