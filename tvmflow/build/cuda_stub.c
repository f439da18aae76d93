/* Stands in for NVIDIA's driver library while a CUDA artifact is compiled on a machine that has no driver.
 *
 * TVM embeds machine code only where its CUDA runtime could be loaded, which needs these nine symbols; without it TVM embeds
 * source text and says nothing. Every call answers "no device" (CUDA_ERROR_NO_DEVICE, 100), so nothing can be run by mistake. */
enum { NO_DEVICE = 100 };

static int say(const char **text) {
  *text = "CUDA_ERROR_NO_DEVICE (tvmflow's stand-in for the driver)";
  return 0;
}

int cuDeviceGetName(void) { return NO_DEVICE; }
int cuFuncSetAttribute(void) { return NO_DEVICE; }
int cuGetErrorName(int error, const char **text) { (void)error; return say(text); }
int cuGetErrorString(int error, const char **text) { (void)error; return say(text); }
int cuLaunchKernelEx(void) { return NO_DEVICE; }
int cuModuleGetFunction(void) { return NO_DEVICE; }
int cuModuleLoadData(void) { return NO_DEVICE; }
int cuModuleUnload(void) { return NO_DEVICE; }
int cuTensorMapEncodeTiled(void) { return NO_DEVICE; }
