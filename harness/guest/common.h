/* SPDX-License-Identifier: GPL-2.0-only */
/* What several programs of the guest do: report a failure, pass descriptors on. */
#ifndef GUEST_COMMON_H
#define GUEST_COMMON_H

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* One write for all of it, as other processes may fail at the same moment. */
static inline void complain(const char *who, const char *format, va_list args)
{
	char text[256];

	vsnprintf(text, sizeof(text), format, args);
	dprintf(STDOUT_FILENO, "%s: FAILED: %s\n", who, text);
}

/* Returns 0, or -1 with errno. */
static inline int fd_send(int sock, int fd, int flags)
{
	char control[CMSG_SPACE(sizeof(int))] = {}, c = 0;
	struct iovec iov = { .iov_base = &c, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	return sendmsg(sock, &msg, flags) == 1 ? 0 : -1;
}

/* Returns the descriptor, or -1. */
static inline int fd_receive(int sock, int flags)
{
	char control[CMSG_SPACE(sizeof(int))], c;
	struct iovec iov = { .iov_base = &c, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	int fd;

	if (recvmsg(sock, &msg, flags) != 1 || !CMSG_FIRSTHDR(&msg))
		return -1;
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
	return fd;
}

#endif /* GUEST_COMMON_H */
