/* Open-loop load: requests leave at a constant rate, whether or not earlier ones were answered.

   arrivals PORT RATE SECONDS LIST     LIST: file names, one a line, posted in turn as raw bodies

   A latency counts from the moment a request was due, so a server that stalls is not spared. Prints
   one line of JSON; "late_p99_ms" is how late requests were sent: the generator's own delay. */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 8192, MAX_FILES = 4096, ANSWER = 1 << 16 };

struct request { char *bytes; size_t size; };
struct link {
  int fd, busy, next_idle;
  struct request *request;
  size_t sent, got, needed; /* needed: bytes of the whole answer, 0 until its head is read */
  double due;
  char answer[ANSWER];
};

static struct request requests[MAX_FILES];
static struct link *links[MAX_CONNECTIONS];
static int request_count, link_count, idle = -1, poller;
static double *latencies, *lags;
static long good, refused, refused_without_retry, failed, answered, sent_count;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what) { perror(what); exit(1); }

static void load(const char *list) {
  char name[4096];
  FILE *names = fopen(list, "r");
  if (!names) die(list);
  while (request_count < MAX_FILES && fgets(name, sizeof name, names)) {
    name[strcspn(name, "\n")] = 0;
    struct stat seen;
    if (!*name) continue;
    FILE *file = fopen(name, "rb");
    if (!file || fstat(fileno(file), &seen)) die(name);
    char *bytes = malloc(seen.st_size + 256);
    int head = sprintf(bytes, "POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
                              "Content-Length: %ld\r\n\r\n", (long)seen.st_size);
    if (fread(bytes + head, 1, seen.st_size, file) != (size_t)seen.st_size) die(name);
    fclose(file);
    requests[request_count++] = (struct request){bytes, head + seen.st_size};
  }
  fclose(names);
  if (!request_count) { fprintf(stderr, "no photos\n"); exit(1); }
}

static void listen_for(struct link *link, int number, unsigned events, int op) {
  struct epoll_event event = {.events = events, .data.u32 = number};
  (void)link;
  if (epoll_ctl(poller, op, links[number]->fd, &event)) die("epoll_ctl");
}

static void dial(int number, int port) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
  struct link *link = links[number];
  int one = 1;
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  link->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (link->fd < 0 || connect(link->fd, (struct sockaddr *)&to, sizeof to)) die("connect");
  fcntl(link->fd, F_SETFL, O_NONBLOCK);
  setsockopt(link->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  listen_for(link, number, EPOLLIN, EPOLL_CTL_ADD);
}

static void push(int number) {
  struct link *link = links[number];
  while (link->sent < link->request->size) {
    ssize_t n = send(link->fd, link->request->bytes + link->sent,
                     link->request->size - link->sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) {
      listen_for(link, number, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
      return;
    }
    if (n < 0) return; /* the reading side finds out */
    link->sent += n;
  }
  listen_for(link, number, EPOLLIN, EPOLL_CTL_MOD);
}

static void settle(int number, int port, int keep) {
  struct link *link = links[number];
  link->busy = 0;
  if (!keep) {
    close(link->fd);
    dial(number, port);
  }
  link->next_idle = idle;
  idle = number;
  answered++;
}

static void pull(int number, int port) {
  struct link *link = links[number];
  for (;;) {
    ssize_t n = recv(link->fd, link->answer + link->got, ANSWER - 1 - link->got, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
      if (link->busy) { failed++; settle(number, port, 0); }
      else { close(link->fd); dial(number, port); }
      return;
    }
    link->got += n;
    link->answer[link->got] = 0;
    if (!link->needed) {
      char *end = strstr(link->answer, "\r\n\r\n"), *length;
      if (!end) continue;
      length = strcasestr(link->answer, "\ncontent-length:");
      link->needed = end + 4 - link->answer + (length ? strtoul(length + 16, 0, 10) : 0);
      if (link->needed >= ANSWER) { fprintf(stderr, "an answer is too long\n"); exit(1); }
    }
    if (link->got >= link->needed) break;
  }
  int status = atoi(link->answer + 9);
  link->answer[link->needed] = 0;
  if (status == 200) latencies[good++] = now() - link->due;
  else if (status == 429) {
    refused++;
    refused_without_retry += !strcasestr(link->answer, "\nretry-after:");
  } else failed++;
  settle(number, port, !strcasestr(link->answer, "\nconnection: close"));
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double cut(double *values, long count, double share) {
  return count ? 1e3 * values[(long)(share * (count - 1))] : 0;
}

int main(int argc, char **argv) {
  if (argc != 5) { fprintf(stderr, "arrivals PORT RATE SECONDS LIST\n"); return 2; }
  int port = atoi(argv[1]);
  double rate = atof(argv[2]), seconds = atof(argv[3]);
  long total = rate * seconds;
  load(argv[4]);
  latencies = malloc((total + 1) * sizeof *latencies);
  lags = malloc((total + 1) * sizeof *lags);
  poller = epoll_create1(0);
  double began = now(), end = 0;
  while (answered < total) {
    double moment = now();
    while (sent_count < total && began + sent_count / rate <= moment) {
      int number = idle;
      if (number >= 0) idle = links[number]->next_idle;
      else {
        if (link_count == MAX_CONNECTIONS) { fprintf(stderr, "too many connections\n"); return 1; }
        number = link_count++;
        links[number] = calloc(1, sizeof(struct link));
        dial(number, port);
      }
      struct link *link = links[number];
      link->busy = 1;
      link->request = &requests[sent_count % request_count];
      link->sent = link->got = link->needed = 0;
      link->due = began + sent_count / rate;
      lags[sent_count++] = now() - link->due;
      push(number);
      moment = now();
    }
    if (sent_count == total && !end) end = now();
    if (end && now() > end + 60) break; /* the rest never came */
    double next = sent_count < total ? began + sent_count / rate - now() : 0.1;
    struct epoll_event events[256];
    struct timespec pause = {0, next > 0 ? (long)(1e9 * (next < 0.5 ? next : 0.5)) : 0};
    int n = epoll_pwait2(poller, events, 256, &pause, 0);
    for (int i = 0; i < n; i++) {
      int number = events[i].data.u32;
      if (events[i].events & EPOLLOUT) push(number);
      if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) pull(number, port);
    }
  }
  double spent = now() - began;
  qsort(latencies, good, sizeof *latencies, ascending);
  qsort(lags, sent_count, sizeof *lags, ascending);
  printf("{\"sent\": %ld, \"good\": %ld, \"refused\": %ld, \"refused_without_retry_after\": %ld, "
         "\"failed\": %ld, \"unanswered\": %ld, \"seconds\": %.3f, \"connections\": %d, "
         "\"p50_ms\": %.3f, \"p99_ms\": %.3f, \"late_p99_ms\": %.3f}\n",
         sent_count, good, refused, refused_without_retry, failed, total - answered, spent,
         link_count, cut(latencies, good, .5), cut(latencies, good, .99),
         cut(lags, sent_count, .99));
  return 0;
}
