// SPDX-License-Identifier: GPL-2.0-or-later
// The events for the Python side: one JSON object a line.  Bytes above 126 are written as \u00XX, one for each byte.
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "recorder.h"

#define FLUSH_AT 65536
#define FLUSH_AFTER_MS 200

struct text event_out;
static int event_fd = -1;
static bool first_pair;
static u64 last_flush;

void *get_memory(void *old, size_t size)
{
	void *new = realloc(old, size);
	if (!new) {
		static const char message[] = "vmalab: the recorder is out of memory\n";
		if (write(2, message, sizeof message - 1) < 0)
			_exit(3);
		_exit(3);
	}
	return new;
}

u64 now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (u64)now.tv_sec * 1000 + (u64)now.tv_nsec / 1000000;
}

static void text_reserve(struct text *text, size_t more)
{
	if (text->length + more <= text->capacity)
		return;
	text->capacity = (text->length + more) * 2;
	text->bytes = get_memory(text->bytes, text->capacity);
}

void text_add(struct text *text, const void *bytes, size_t length)
{
	text_reserve(text, length + 1);
	memcpy(text->bytes + text->length, bytes, length);
	text->length += length;
	text->bytes[text->length] = 0;
}

void text_print(struct text *text, const char *format, ...)
{
	va_list values;
	va_start(values, format);
	text_reserve(text, 512);
	int length = vsnprintf(text->bytes + text->length, 512, format, values);
	va_end(values);
	if (length > 0)
		text->length += length < 512 ? (size_t)length : 511;
}

void text_quote(struct text *text, const char *bytes, size_t length)
{
	static const char hex[] = "0123456789abcdef";
	text_reserve(text, 6 * length + 3);
	char *to = text->bytes + text->length;
	*to++ = '"';
	for (size_t i = 0; i < length; i++) {
		unsigned char c = (unsigned char)bytes[i];
		if (c == '"' || c == '\\') {
			*to++ = '\\';
			*to++ = (char)c;
		} else if (c >= 32 && c < 127) {
			*to++ = (char)c;
		} else {
			memcpy(to, "\\u00", 4);
			to[4] = hex[c >> 4];
			to[5] = hex[c & 15];
			to += 6;
		}
	}
	*to++ = '"';
	*to = 0;
	text->length = (size_t)(to - text->bytes);
}

void text_free(struct text *text)
{
	free(text->bytes);
	*text = (struct text){0};
}

void event_open(int fd)
{
	event_fd = fd;
	last_flush = now_ms();
}

static void add_key(const char *key)
{
	text_print(&event_out, "%s\"%s\":", first_pair ? "" : ",", key);
	first_pair = false;
}

void event_begin(const char *type)
{
	text_add(&event_out, "{", 1);
	first_pair = true;
	event_string("type", type);
}

static char *decimal(char *end, u64 value)
{
	do {
		*--end = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	return end;
}

void event_number(const char *key, u64 value)
{
	char digits[24], *first = decimal(digits + sizeof digits, value);
	add_key(key);
	text_add(&event_out, first, (size_t)(digits + sizeof digits - first));
}

void event_signed(const char *key, int64_t value)
{
	add_key(key);
	text_print(&event_out, "%lld", (long long)value);
}

void event_bytes(const char *key, const char *bytes, size_t length)
{
	add_key(key);
	text_quote(&event_out, bytes, length);
}

void event_string(const char *key, const char *value)
{
	event_bytes(key, value, strlen(value));
}

void event_end(void)
{
	text_add(&event_out, "}\n", 2);
	if (event_out.length >= FLUSH_AT)
		event_flush();
}

void event_flush(void)
{
	size_t done = 0;
	while (done < event_out.length) {
		ssize_t written = write(event_fd, event_out.bytes + done, event_out.length - done);
		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0)
			_exit(3);	// nobody reads: the program cannot go on without its tracer, and ends with us
		done += (size_t)written;
	}
	event_out.length = 0;
	last_flush = now_ms();
}

bool event_flush_if_old(void)
{
	if (event_out.length && now_ms() - last_flush >= FLUSH_AFTER_MS)
		event_flush();
	return event_out.length == 0;
}

void event_lost(pid_t pid, const char *why)
{
	event_begin("lost");
	event_number("pid", (u64)pid);
	event_string("why", why);
	event_end();
}
