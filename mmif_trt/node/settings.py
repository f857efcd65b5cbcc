"""The node's settings, from its start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mmif_trt import weights
from mmif_trt.dicomweb import Service
from mmif_trt.node.admission import Peer
from mmif_trt.volume import Options


@dataclass(frozen=True)
class Settings:
    aet: str
    port: int
    spool: Path
    send_to: tuple[str, str, int] | None  # AE title, host, port; None: by dicomweb
    dicomweb: Service | None = None
    host: str = "127.0.0.1"
    peers: tuple[Peer, ...] | None = ()  # allowed peers; None: anybody
    quiet_s: float = 10.0
    hold_s: float = 600.0  # longest delay of a quiet study by an open association
    http_port: int | None = None
    http_host: str = "127.0.0.1"
    http_token: str | None = None  # file; required by /health and /metrics
    http_tls: bool = False  # the same TLS as for peers, who show a certificate
    audit: str | None = None  # file, or "syslog"
    max_instance_bytes: int = 512 << 20
    max_association_bytes: int = 16 << 30
    max_memory_bytes: int = 2 << 30  # of instances that are arriving, of all peers
    max_spool_bytes: int = 100 << 30
    max_per_s: float = 500.0  # instances, from all peers
    max_associations: int = 16
    min_free_bytes: int = 1 << 30
    max_fusion_bytes: int = 16 << 30  # address space of the process that fuses
    study_s: float = 1800.0  # longest fusion of a case
    keep_s: float = 86_400.0
    retry_s: float = 5.0
    options: Options = field(default_factory=Options)
    network: str = weights.DEFAULT
    tls: tuple[str, str, str] | None = None  # certificate, key, and authority file of the peers
    tls_any_peer: bool = False  # peers need no certificate
    tls_plain_pacs: bool = False  # no TLS to the PACS
    pseudonym_key: str | None = None  # file; None: one in the spool

    @property
    def pacs(self) -> str:
        """Where results go, for the audit trail."""
        if self.send_to is not None:
            return "{}@{}:{}".format(*self.send_to)
        return self.dicomweb.url if self.dicomweb else ""
