"""What a head that takes no jobs says; Ray itself waits ten seconds before it does."""

import socket

import pytest

from tests.pipelines.operations.builders import Salmonn, extraction
from tests.ray_head import free_ports, ray_head

pytestmark = [pytest.mark.ray, pytest.mark.chaos]


def test_a_head_whose_agent_lacks_its_port_is_named_and_nothing_is_started(tmp_path):
    ports = free_ports(4)
    with socket.create_server(("", ports[3])), ray_head(ports=ports) as deaf:
        salmonn = Salmonn(deaf)
        code, said = salmonn.call("submit", "extract", *extraction(tmp_path), salmonn.address)
        assert code == 2 and "the head has no job agent" in said and "--dashboard-agent-listen-port" in said, said
        assert "started: " not in said
