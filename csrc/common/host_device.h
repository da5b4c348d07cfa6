// SPDX-License-Identifier: Apache-2.0
// For the headers that hold an operator's arithmetic: one text for the host and for the GPU.
#pragma once

#if defined(__CUDACC__)
#define SCRD_HOST_DEVICE __host__ __device__
#else
#define SCRD_HOST_DEVICE
#endif
