"""Servers on the loopback that give a folder by URL: S3 (moto) and HTTP. They count requests, and fail when told to."""

import http.server
import io
import logging
import os
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import quote, unquote


class Faults:
    """What a server does in place of an answer, and the GETs of objects that came, by their names."""

    def __init__(self):
        self.asked, self.pages = Counter(), Counter()
        self.failing = 0  # so many GETs of objects are answered by 500
        self.silent = 0.0  # seconds before any answer
        self.forbidden = False

    def status(self, method, path):
        """The status to answer with; 0: as usual."""
        time.sleep(self.silent)
        _, _, name = unquote(path).strip("/").partition("/")
        if method != "GET" or not name or path.endswith("/"):
            return 403 if self.forbidden else 0
        self.asked[name] += 1
        if self.forbidden:
            return 403
        self.failing, failed = max(0, self.failing - 1), self.failing > 0
        return 500 if failed else 0


class Web:
    """An HTTP server of the files in a folder, with or without ranges.

    With `dots` its pages link as Caddy's do: to ./NAME, to all folders above, and to the page in another order.
    """

    scheme = "http"

    def __init__(self, folder, port=0, ranges=True, dots=False):
        self.faults = faults = Faults()

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=str(folder))

            def do_GET(self):
                if status := faults.status("GET", f"/images{self.path}"):
                    return self.send_error(status)
                asked, file = self.headers.get("Range", ""), Path(self.translate_path(self.path))
                if not (ranges and asked and file.is_file()):
                    return super().do_GET()
                content = file.read_bytes()
                first, _, last = asked.removeprefix("bytes=").partition("-")
                part = content[int(first) : int(last) + 1 if last else None]
                self.send_response(206)
                self.send_header("Content-Length", str(len(part)))
                self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
                self.end_headers()
                self.wfile.write(part)

            def list_directory(self, path):
                faults.pages[self.path] += 1
                if not dots:
                    return super().list_directory(path)
                links = ["../" * (n + 1) for n in range(self.path.count("/"))] + ["./?sort=name", "?path=/"]
                links += [f"./{quote(entry.name)}{'/' * entry.is_dir()}" for entry in Path(path).iterdir()]
                content = "".join(f'<a href="{link}">x</a>' for link in links).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                return io.BytesIO(content)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Bucket:
    """An S3 server with one bucket, of the files in a folder."""

    scheme, url = "s3", "s3://images"

    def __init__(self, folder, port=0):
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.faults, app = Faults(), DomainDispatcherApplication(create_backend_app)

        def answer(environ, start):
            status = self.faults.status(environ["REQUEST_METHOD"], environ["PATH_INFO"])
            if status:
                code = {403: "AccessDenied", 500: "InternalError"}[status]
                start(f"{status} {code}", [("Content-Type", "application/xml")])
                told = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
                return [told] if environ["REQUEST_METHOD"] != "HEAD" else []  # as S3; a body would break the protocol
            return app(environ, start)

        self._server = make_server("127.0.0.1", port, answer, threaded=True)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self._fill(folder)

    def _fill(self, folder):
        import boto3

        keys = dict(aws_access_key_id="any", aws_secret_access_key="any", region_name="us-east-1")
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.port}", **keys)
        client.create_bucket(Bucket="images")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.put_object(Bucket="images", Key=os.fspath(path.relative_to(folder)), Body=path.read_bytes())
        client.close()
        self.faults.asked.clear()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def link(server, path):
    """The URL of a path in the folder, as a person copies it."""
    return f"{server.url}/{quote(path) if server.scheme == 'http' else path}"
