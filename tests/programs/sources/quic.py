"""QUIC at both ends, by aioquic:  quic.py serve ADDRESS PORT DIRECTORY | quic.py ask ADDRESS PORT BYTES."""

import asyncio
import datetime
import ipaddress
import ssl
import sys
from pathlib import Path

from aioquic.asyncio import connect, serve
from aioquic.quic.configuration import QuicConfiguration
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificate(directory, address):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "quic.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), False
        )
        .sign(key, hashes.SHA256())
    )
    pem, secret = directory / "cert.pem", directory / "key.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pem, secret


async def echo(reader, writer):
    data = await reader.read()
    writer.write(data)
    writer.write_eof()


async def server(address, port, directory):
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["echo"])
    configuration.load_cert_chain(*certificate(Path(directory), address))
    await serve(
        address,
        port,
        configuration=configuration,
        stream_handler=lambda r, w: tasks.append(asyncio.ensure_future(echo(r, w))),
    )
    print("serving", flush=True)
    await asyncio.Future()


async def client(address, port, count):
    configuration = QuicConfiguration(alpn_protocols=["echo"], verify_mode=ssl.CERT_NONE)
    async with connect(address, port, configuration=configuration) as connection:
        reader, writer = await connection.create_stream()
        data = bytes(range(256)) * (count // 256)
        writer.write(data)
        writer.write_eof()
        answer = await reader.read()
        print(len(answer), answer == data, flush=True)


tasks = []
what, address, port, last = sys.argv[1:]
if what == "serve":
    asyncio.run(server(address, int(port), last))
else:
    asyncio.run(asyncio.wait_for(client(address, int(port), int(last)), 25))
