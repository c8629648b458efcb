/* The C program of the tests, built static with musl.
 *
 *   net get HOST PORT PATH      the page's body, found by getaddrinfo(3), HTTP/1.0
 *   net echo HOST PORT BYTES    there and back, half-closed: both ends' names, and "same"
 *   net serve ADDRESS PORT      echo server in one thread with poll(2); says its clients' addresses
 *   net lookup NAME...          the addresses of each name; - reads names from stdin
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CLIENTS 64
#define ADDRESS_LENGTH 64

static void fail(const char *what) {
    printf("%s: errno %d\n", what, errno);
    exit(1);
}

static struct addrinfo *find(const char *host, const char *port) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int status = getaddrinfo(host, port, &hints, &found);
    if (status) {
        printf("%s\n", status == EAI_NONAME ? "no such name" : gai_strerror(status));
        exit(1);
    }
    return found;
}

static int reach(const char *host, const char *port) {
    struct addrinfo *found = find(host, port);
    int sock = -1;
    for (struct addrinfo *one = found; one; one = one->ai_next) {
        sock = socket(one->ai_family, one->ai_socktype | SOCK_CLOEXEC, one->ai_protocol);
        if (sock >= 0 && connect(sock, one->ai_addr, one->ai_addrlen) == 0)
            break;
        int error = errno;
        close(sock);
        errno = error;
        sock = -1;
    }
    freeaddrinfo(found);
    if (sock < 0)
        fail("connect");
    return sock;
}

static void say_end(int sock, int (*name)(int, struct sockaddr *, socklen_t *)) {
    struct sockaddr_storage end;
    socklen_t length = sizeof end;
    char text[ADDRESS_LENGTH];
    if (name(sock, (struct sockaddr *)&end, &length))
        fail("name");
    if (getnameinfo((struct sockaddr *)&end, length, text, sizeof text, NULL, 0, NI_NUMERICHOST))
        fail("getnameinfo");
    printf(" %s", text);
}

static void put(int sock, const char *data, size_t length) {
    while (length) {
        ssize_t sent = send(sock, data, length, MSG_NOSIGNAL);
        if (sent < 0)
            fail("send");
        data += sent;
        length -= sent;
    }
}

static void get(char **word) {
    int sock = reach(word[0], word[1]);
    char text[65536];
    int length = snprintf(text, sizeof text, "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", word[2], word[0]);
    put(sock, text, length);
    FILE *answer = fdopen(sock, "r");
    while (fgets(text, sizeof text, answer) && strcmp(text, "\r\n"))
        ;
    for (size_t part; (part = fread(text, 1, sizeof text, answer));)
        fwrite(text, 1, part, stdout);
    fclose(answer);
}

static void echo(char **word) {
    int sock = reach(word[0], word[1]);
    size_t total = strtoul(word[2], NULL, 10), sent = 0, back = 0;
    char *data = malloc(total + 1), *copy = malloc(total + 1);
    for (size_t i = 0; i < total; i++)
        data[i] = (char)(i * 7 + i / 251);
    printf("between");
    say_end(sock, getsockname);
    say_end(sock, getpeername);
    if (total == 0)
        shutdown(sock, SHUT_WR);
    for (;;) {
        struct pollfd wait = {.fd = sock, .events = POLLIN | (sent < total ? POLLOUT : 0)};
        if (poll(&wait, 1, 20000) != 1)
            fail("poll");
        if (wait.revents & POLLOUT) {
            ssize_t part = send(sock, data + sent, total - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (part < 0 && errno != EAGAIN)
                fail("send");
            sent += part > 0 ? part : 0;
            if (sent == total)
                shutdown(sock, SHUT_WR);
        }
        if (wait.revents & (POLLIN | POLLHUP | POLLERR)) {
            ssize_t part = recv(sock, copy + back, total + 1 - back, MSG_DONTWAIT);
            if (part < 0 && errno != EAGAIN)
                fail("recv");
            if (part == 0)
                break;
            back += part > 0 ? part : 0;
        }
    }
    printf(" %s\n", back == total && !memcmp(data, copy, total) ? "same" : "differs");
    free(data);
    free(copy);
    close(sock);
}

static void serve(char **word) {
    struct addrinfo *found = find(word[0], word[1]);
    struct pollfd wait[CLIENTS + 1] = {{.events = POLLIN}};
    nfds_t count = 1;
    int one = 1, listener = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, found->ai_addr, found->ai_addrlen) || listen(listener, CLIENTS))
        fail("listen");
    freeaddrinfo(found);
    wait[0].fd = listener;
    for (;;) {
        if (poll(wait, count, -1) < 0)
            fail("poll");
        if (wait[0].revents && count <= CLIENTS) {
            int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
            if (client < 0)
                fail("accept");
            printf("client");
            say_end(client, getpeername);
            putchar('\n');
            fflush(stdout);
            wait[count++] = (struct pollfd){.fd = client, .events = POLLIN};
            continue;
        }
        for (nfds_t i = 1; i < count; i++) {
            char data[65536];
            if (!wait[i].revents)
                continue;
            ssize_t length = recv(wait[i].fd, data, sizeof data, 0);
            if (length > 0) {
                put(wait[i].fd, data, length);
            } else {
                close(wait[i].fd);
                wait[i--] = wait[--count];
            }
        }
    }
}

static int by_text(const void *a, const void *b) { return strcmp(a, b); }

static void lookup(const char *name) {
    static char texts[256][ADDRESS_LENGTH];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    size_t count = 0;
    int status = getaddrinfo(name, NULL, &hints, &found);
    if (status) {
        printf("%s\n", status == EAI_NONAME ? "no such name" : gai_strerror(status));
        return;
    }
    for (struct addrinfo *one = found; one && count < 256; one = one->ai_next)
        if (!getnameinfo(one->ai_addr, one->ai_addrlen, texts[count], ADDRESS_LENGTH, NULL, 0,
                         NI_NUMERICHOST))
            count++;
    freeaddrinfo(found);
    qsort(texts, count, ADDRESS_LENGTH, by_text);
    for (size_t i = 0; i < count; i++)
        printf("%s%s", i ? " " : "", texts[i]);
    putchar('\n');
}

static void names(char **word) {
    for (; *word; word++) {
        char line[512];
        if (strcmp(*word, "-"))
            lookup(*word);
        else
            while (fgets(line, sizeof line, stdin)) {
                line[strcspn(line, "\n")] = 0;
                lookup(line);
                fflush(stdout);
            }
    }
}

int main(int count, char **word) {
    if (count >= 5 && !strcmp(word[1], "get"))
        get(word + 2);
    else if (count >= 5 && !strcmp(word[1], "echo"))
        echo(word + 2);
    else if (count >= 4 && !strcmp(word[1], "serve"))
        serve(word + 2);
    else if (count >= 3 && !strcmp(word[1], "lookup"))
        names(word + 2);
    else
        return 2;
    return 0;
}
