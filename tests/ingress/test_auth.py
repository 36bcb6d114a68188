"""Who is admitted, for every kind of access and every configuration of keys."""

from __future__ import annotations

import pytest

from cluster.errors import ClientError, Forbidden, TooManyRequests, Unauthenticated
from cluster.ingress.api_keys import KeyRing, KeySource
from cluster.ingress.auth import Access, Authenticator, Caller, is_loopback, is_this_host
from tests.support.local_ingress import num_admissible

CLIENT, OPERATOR = "client-0123456789abcdef", "operator-0123456789abcdef"
HERE, ELSEWHERE = "127.0.0.1", "192.0.2.7"


def new_authenticator(
    *, clients: str = "", operators: str = "", is_loopback: bool = True, max_per_key: int = 256
) -> Authenticator:
    sources = (
        KeySource(file=None, variable="PHIMOE_API_KEYS", entries=clients, is_admin=False),
        KeySource(file=None, variable="PHIMOE_ADMIN_KEYS", entries=operators, is_admin=True),
    )
    return Authenticator(KeyRing(sources), is_loopback=is_loopback, max_requests_per_key=max_per_key)


def shows(key: str, address: str = ELSEWHERE) -> Caller:
    return Caller(authorization=(f"Bearer {key}",), address=address)


def result(authenticator: Authenticator, access: Access, caller: Caller) -> type[ClientError] | None:
    try:
        with authenticator.admitted(access, caller):
            return None
    except ClientError as error:
        return type(error)


@pytest.mark.parametrize("access", Access)
@pytest.mark.parametrize(
    ("caller", "expected"),
    [
        pytest.param(
            Caller(), {"public": None, "client": Unauthenticated, "admin": Unauthenticated}, id="nothing"
        ),
        pytest.param(
            shows("wrong-0123456789abcdef"),
            {"public": None, "client": Unauthenticated, "admin": Unauthenticated},
            id="wrong-key",
        ),
        pytest.param(shows(CLIENT), {"public": None, "client": None, "admin": Forbidden}, id="client"),
        pytest.param(shows(OPERATOR), {"public": None, "client": None, "admin": None}, id="operator"),
        pytest.param(
            Caller(authorization=(f"Basic {CLIENT}",)),
            {"public": None, "client": Unauthenticated, "admin": Unauthenticated},
            id="other-scheme",
        ),
        pytest.param(
            Caller(authorization=(f"Bearer {CLIENT}", f"Bearer {CLIENT}")),
            {"public": None, "client": Unauthenticated, "admin": Unauthenticated},
            id="two-headers",
        ),
        pytest.param(
            Caller(authorization=(f"bearer   {OPERATOR} ",)),
            {"public": None, "client": None, "admin": None},
            id="scheme-in-small-letters",
        ),
    ],
)
def test_with_keys_each_access_requires_its_own(
    access: Access, caller: Caller, expected: dict[str, type[ClientError] | None]
) -> None:
    assert (
        result(new_authenticator(clients=CLIENT, operators=OPERATOR), access, caller)
        is expected[access.value]
    )


def test_admin_keys_alone_make_clients_need_a_key_as_well() -> None:
    authenticator = new_authenticator(operators=OPERATOR)
    assert result(authenticator, Access.CLIENT, Caller()) is Unauthenticated
    assert result(authenticator, Access.CLIENT, shows(OPERATOR)) is None


def test_client_keys_alone_leave_admin_closed_even_for_this_host() -> None:
    authenticator = new_authenticator(clients=CLIENT)
    assert result(authenticator, Access.ADMIN, shows(CLIENT, HERE)) is Forbidden
    assert result(authenticator, Access.ADMIN, Caller(address=HERE)) is Unauthenticated


@pytest.mark.parametrize(
    ("is_loopback", "caller", "expected"),
    [
        pytest.param(True, Caller(address=HERE), None, id="this-host"),
        pytest.param(True, Caller(address="::ffff:127.0.0.1"), None, id="this-host-mapped"),
        pytest.param(True, Caller(address=ELSEWHERE), Forbidden, id="another-host"),
        pytest.param(True, Caller(), Forbidden, id="unknown-host"),
        pytest.param(True, Caller(address=HERE, is_from_page=True), Forbidden, id="web-page"),
        pytest.param(True, Caller(address=HERE, is_forwarded=True), Forbidden, id="through-a-proxy"),
        pytest.param(False, Caller(address=HERE), Forbidden, id="not-on-loopback"),
    ],
)
def test_without_keys_admin_is_for_this_host_on_loopback_alone(
    is_loopback: bool, caller: Caller, expected: type[ClientError] | None
) -> None:
    authenticator = new_authenticator(is_loopback=is_loopback)
    assert result(authenticator, Access.ADMIN, caller) is expected
    assert result(authenticator, Access.CLIENT, caller) is None


def test_each_key_has_its_own_places_and_gets_them_back() -> None:
    other = "other-0123456789abcdef"
    authenticator = new_authenticator(clients=f"{CLIENT},{other}", operators=OPERATOR, max_per_key=2)
    with authenticator.admitted(Access.CLIENT, shows(CLIENT)):
        with pytest.raises(ZeroDivisionError), authenticator.admitted(Access.CLIENT, shows(CLIENT)):
            assert result(authenticator, Access.CLIENT, shows(CLIENT)) is TooManyRequests
            assert result(authenticator, Access.CLIENT, shows(other)) is None
            assert result(authenticator, Access.PUBLIC, shows(CLIENT)) is None
            assert result(authenticator, Access.ADMIN, shows(OPERATOR)) is None
            raise ZeroDivisionError
        assert num_admissible(authenticator, CLIENT) == 1
        assert result(authenticator, Access.CLIENT, shows(CLIENT)) is None
    assert num_admissible(authenticator, CLIENT) == 2


def test_no_message_holds_the_key() -> None:
    authenticator = new_authenticator(clients=CLIENT, max_per_key=1)
    messages = []
    with authenticator.admitted(Access.CLIENT, shows(CLIENT)):
        for access, caller in (
            (Access.CLIENT, shows(CLIENT)),
            (Access.ADMIN, shows(CLIENT)),
            (Access.CLIENT, shows("x" * 20)),
        ):
            with pytest.raises(ClientError) as caught, authenticator.admitted(access, caller):
                pass
            messages.append(str(caught.value))
    assert not any(CLIENT in message or "x" * 20 in message for message in messages)


def test_addresses_of_this_host_are_known() -> None:
    assert all(is_this_host(address) for address in ("127.0.0.1", "127.1.2.3", "::1"))
    assert not any(
        is_this_host(address) for address in (ELSEWHERE, "0.0.0.0", "::", "2001:db8::1", "name", "")
    )
    assert is_loopback("localhost") and is_loopback("::1") and is_loopback("127.0.0.1")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.com")
