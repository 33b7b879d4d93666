"""TLS of a server's ports: its certificate as it is now, and a check of the peer before every call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import grpc

from tablebay.client.errors import ERROR_METADATA, BadRequest, TablebayError, Unauthenticated, status_code
from tablebay.client.peer import Peer
from tablebay.client.tls import Credentials, Folder
from tablebay.native import _core
from tablebay.ps_server.access import Access, shown
from tablebay.ps_server.telemetry import Events

_EVENTS = Events(__name__)
_SERVICES = ("tablebay.v1.Data", "tablebay.v1.Control")

Made = TypeVar("Made")


class Security:
    """What a server needs of its folder of certificates; renewed ones serve from the next connection on.

    job: its name. index: of the server. Raises BadRequest where the folder, or the certificate in it, is not this
    server's.
    """

    def __init__(self, folder: Folder, *, job: str, index: int) -> None:
        self.folder = folder
        version = folder.version()
        found = folder.read()
        self._first = version, found
        self._own = _own(folder, found, index)
        self._access = Access(self._own, job)

    def credentials(self) -> grpc.ServerCredentials:
        """Of one port of gRPC's library. Whoever connects must show a certificate."""
        renewals: Any = _Renewals(self.folder, self._own, self._first[0], _configuration)
        found: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            _configuration(self._first[1]), renewals, True
        )
        return found

    def contexts(self) -> Callable[[], _core.TlsContext]:
        """Of one port of the native core: what is shown to whoever connects now, and must show a certificate.

        Raises BadRequest where the folder's files do not belong together.
        """
        renewals = _Renewals(self.folder, self._own, self._first[0], _context)
        try:
            shown_now = _context(self._first[1])
        except _core.StatusError as error:
            raise BadRequest(f"{self.folder.path}: {error.args[1]}") from None

        def now() -> _core.TlsContext:
            nonlocal shown_now
            shown_now = renewals() or shown_now
            return shown_now

        return now

    def check(self, certificate: bytes, method: str, request: bytes | memoryview) -> None:
        """Whether who shows this certificate (PEM) may send a request. Raises a TablebayError."""
        self._access.check(self._access.peer(certificate), method, request)

    def interceptor(self) -> grpc.ServerInterceptor[Any, Any]:
        """Refuses calls that the peer may not make, of every service of a port."""
        return _Gatekeeper(self._access)


class _Renewals(Generic[Made]):
    """One port's: each has to be told of a renewal, as it has them."""

    def __init__(
        self, folder: Folder, own: Peer, version: object, make: Callable[[Credentials], Made]
    ) -> None:
        self._folder, self._own, self._version, self._make = folder, own, version, make
        self._lock = threading.Lock()

    def __call__(self) -> Made | None:
        """Before each handshake: what is in the folder, or None to go on with what there was."""
        try:
            with self._lock:
                version = self._folder.version()
                if version == self._version:
                    return None
                found = self._folder.read()
                own = _own(self._folder, found, self._own.index)
                if own != self._own:
                    raise BadRequest(
                        f"{self._folder.path}: the certificate is of {own.uri}, wanted {self._own.uri}"
                    )
                made = self._make(found)
                self._version = version
        except Exception as error:  # noqa: BLE001 - the connection would end, and nobody say anything
            _EVENTS.warning("certificate.unusable", cause=str(error))
            return None
        _EVENTS.info("certificate.renewed", ends=shown(found.certificate).ends.isoformat())
        return made


def _own(folder: Folder, credentials: Credentials, index: int | None) -> Peer:
    try:
        own = shown(credentials.certificate).peer
    except ModuleNotFoundError:
        raise BadRequest("TLS wants the package cryptography: pip install 'tablebay[tls]'") from None
    except Unauthenticated as error:
        raise BadRequest(f"{folder.path}/tls.crt: {error}") from None
    if (own.role, own.index) != ("server", index):
        raise BadRequest(f"{folder.path}/tls.crt is the certificate of {own.name}, wanted server {index}'s")
    return own


def _configuration(found: Credentials) -> Any:
    return grpc.ssl_server_certificate_configuration([(found.key, found.certificate)], found.authorities)


def _context(found: Credentials) -> _core.TlsContext:
    return _core.TlsContext(
        server=True, key=found.key, certificate=found.certificate, authorities=found.authorities
    )


class _Gatekeeper(grpc.ServerInterceptor):  # type: ignore[type-arg] # generic in the stubs alone
    def __init__(self, access: Access) -> None:
        self._access = access
        self._handlers: dict[str, Any] = {}

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """The method's handler behind a check; kept, since a port's handlers never change."""
        handler = self._handlers.get(details.method)
        if handler is None:
            found = continuation(details)
            if found is None:
                # There is no such method.
                return None
            handler = self._handlers[details.method] = self._guarded(details.method, found)
        return handler

    def _guarded(self, path: str, found: Any) -> Any:
        service, _, method = path.removeprefix("/").rpartition("/")
        ours = service in _SERVICES
        kind = f"{'stream' if found.request_streaming else 'unary'}_{'stream' if found.response_streaming else 'unary'}"
        answer = getattr(found, kind)

        def guarded(request: Any, context: Any) -> Any:
            try:
                certificate = context.auth_context().get("x509_pem_cert")
                peer = self._access.peer(certificate[0] if certificate else None)
                if ours:
                    self._access.check(peer, method, request)
            except TablebayError as error:
                context.set_trailing_metadata(((ERROR_METADATA, type(error).__name__),))
                context.abort(grpc.StatusCode[status_code(error)], str(error))
            return answer(request, context)

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(guarded, found.request_deserializer, found.response_serializer)
