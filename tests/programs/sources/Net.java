// The Java program of the tests, started from its source (JEP 330).
//
//   java Net.java client WEB4 ECHO URL...   HttpClient, Socket, channels, errors: one line each
//   java Net.java serve ADDRESS PORT        an echo server with ServerSocket and one thread a client
//   java Net.java names NAME...             InetAddress.getAllByName; `-`: those on stdin
//   java Net.java interfaces                NetworkInterface: name, up, loopback, addresses
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.NetworkInterface;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.URI;
import java.net.UnknownHostException;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.SocketChannel;
import java.security.MessageDigest;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HexFormat;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.stream.Stream;

public class Net {
    static final int LIMIT = 20_000;

    static HttpResponse<byte[]> get(HttpClient client, String url) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(url)).timeout(Duration.ofMillis(LIMIT));
        return client.send(request.build(), HttpResponse.BodyHandlers.ofByteArray());
    }

    static String page(HttpClient client, String url) {
        try {
            var answer = get(client, url);
            var sha = MessageDigest.getInstance("SHA-256").digest(answer.body());
            return answer.statusCode() + " " + answer.body().length + " "
                    + HexFormat.of().formatHex(sha);
        } catch (Exception error) {
            return error.getClass().getSimpleName();
        }
    }

    static int many(HttpClient client, String url, int count) {
        var request = HttpRequest.newBuilder(URI.create(url)).build();
        List<CompletableFuture<Integer>> all = new ArrayList<>();
        for (int i = 0; i < count; i++)
            all.add(client.sendAsync(request, HttpResponse.BodyHandlers.ofByteArray())
                    .thenApply(answer -> answer.statusCode() == 200 ? answer.body().length : 0));
        return all.stream().mapToInt(CompletableFuture::join).sum();
    }

    static String echo(String host, int port) throws Exception {
        var data = new byte[300_000];
        for (int i = 0; i < data.length; i++) data[i] = (byte) (i * 31);
        try (var sock = new Socket()) {
            sock.setSoTimeout(LIMIT);
            sock.setTcpNoDelay(true);
            sock.connect(new InetSocketAddress(host, port), LIMIT);
            var sender = new Thread(() -> {
                try {
                    sock.getOutputStream().write(data);
                    sock.shutdownOutput();
                } catch (IOException error) {
                    System.out.println(error);
                }
            });
            sender.start();
            var back = sock.getInputStream().readAllBytes();
            sender.join();
            return Arrays.equals(data, back) + " from " + sock.getLocalAddress().getHostAddress()
                    + " to " + sock.getInetAddress().getHostAddress() + " nodelay "
                    + sock.getTcpNoDelay();
        }
    }

    /** A channel that connects without blocking, watched by a selector from the start. */
    static String channel(String host, int port) throws Exception {
        try (var selector = Selector.open(); var channel = SocketChannel.open()) {
            channel.configureBlocking(false);
            channel.register(selector, SelectionKey.OP_CONNECT);
            if (!channel.connect(new InetSocketAddress(host, port))) {
                if (selector.select(LIMIT) != 1) return "not connected";
                channel.finishConnect();
            }
            channel.keyFor(selector).interestOps(SelectionKey.OP_READ);
            channel.write(ByteBuffer.wrap("there and back".getBytes()));
            selector.selectedKeys().clear();
            if (selector.select(LIMIT) != 1) return "no answer";
            var buffer = ByteBuffer.allocate(100);
            channel.read(buffer);
            return new String(buffer.array(), 0, buffer.position());
        }
    }

    static String failure(String host, int port) {
        try (var sock = new Socket()) {
            sock.connect(new InetSocketAddress(InetAddress.getByName(host), port), 500);
            return "connected";
        } catch (IOException error) {
            return error.getClass().getSimpleName() + ": " + error.getMessage();
        }
    }

    static void serve(String address, int port) throws IOException {
        try (var listener = new ServerSocket(port, 50, InetAddress.getByName(address))) {
            while (true) {
                var client = listener.accept();
                new Thread(() -> {
                    try (client) {
                        InputStream in = client.getInputStream();
                        OutputStream out = client.getOutputStream();
                        out.write((client.getInetAddress().getHostAddress() + " ").getBytes());
                        in.transferTo(out);
                    } catch (IOException error) {
                        System.out.println(error);
                    }
                }).start();
            }
        }
    }

    static String name(String name) {
        try {
            return String.join(" ", Arrays.stream(InetAddress.getAllByName(name))
                    .map(InetAddress::getHostAddress).sorted().toList());
        } catch (UnknownHostException error) {
            return "no such name";
        }
    }

    public static void main(String[] words) throws Exception {
        var rest = Arrays.asList(words).subList(1, words.length);
        switch (words[0]) {
            case "client" -> {
                var client = HttpClient.newBuilder().connectTimeout(Duration.ofMillis(LIMIT)).build();
                String web = rest.get(0);
                int echo = Integer.parseInt(rest.get(1));
                for (var url : rest.subList(2, rest.size())) System.out.println(page(client, url));
                System.out.println(many(client, "http://" + web + "/large", 20));
                System.out.println(echo(web, echo));
                System.out.println(channel(web, echo));
                System.out.println(failure(web, 9));
                System.out.println(failure("198.51.100.99", 80));
                System.out.println(failure("nothing.test", 80));
            }
            case "serve" -> serve(rest.get(0), Integer.parseInt(rest.get(1)));
            case "names" -> {
                for (var word : rest) {
                    var names = word.equals("-")
                            ? new BufferedReader(new InputStreamReader(System.in)).lines()
                            : Stream.of(word);
                    names.forEach(one -> System.out.println(name(one)));
                }
            }
            case "interfaces" -> {
                for (var one : Collections.list(NetworkInterface.getNetworkInterfaces()))
                    System.out.println(one.getName() + " " + (one.isUp() ? "up" : "down") + " "
                            + (one.isLoopback() ? "loopback" : "other") + " " + one.getMTU() + " "
                            + String.join(" ", one.inetAddresses()
                                    .map(InetAddress::getHostAddress).toList()));
            }
        }
    }
}
