"""TLS: `tls.py serve ADDRESS PORT CERT KEY` says who a client is and 500,000 bytes;
`tls.py get NAME PORT CERT` checks the name and says whom it was and how many came."""

import asyncio
import socket
import ssl
import sys


async def serve(address: str, port: str, cert: str, key: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        client = writer.get_extra_info("peername")[0]
        writer.write(f"{client}\n".encode() + bytes(500_000))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, address, int(port), ssl=context)
    await server.serve_forever()


def get(name: str, port: str, cert: str) -> None:
    context = ssl.create_default_context(cafile=cert)
    with (
        socket.create_connection((name, int(port)), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=name) as sock,
        sock.makefile("rwb") as file,
    ):
        file.write(b"who am I\n")
        file.flush()
        print(file.readline().decode().strip(), len(file.read()))


if sys.argv[1] == "serve":
    asyncio.run(serve(*sys.argv[2:]))
else:
    get(*sys.argv[2:])
